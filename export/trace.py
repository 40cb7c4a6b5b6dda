"""A spec becomes the portable graph: torch.export under fake tensors, no weight in memory."""

from __future__ import annotations

import logging
import warnings

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import fold_constants
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from gptoss_onnx.export.custom_ops import DOMAIN, OPSET, functions
from gptoss_onnx.export.modeling import GptOss
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.graph_passes.weight_role import give_roles


def trace(spec: GptOssSpec) -> ir.Model:
    """The portable graph of `spec`, with every weight an initializer of no value.

    Weights, past and present have their `WeightRole`.

    Inputs: input_ids int64 [batch, sequence], attention_mask int64 [batch, total],
    past_key_values.N.key|value float32 [batch, kv_heads, past, head_dim].
    Outputs: logits float32 [batch, sequence, vocab], present.N.key|value.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = GptOss(spec).eval()
        program = torch.export.export(
            model, (), _example(spec), dynamic_shapes=_dynamic(spec), strict=False
        )
    names = [f"{i}.{kv}" for i in range(spec.num_layers) for kv in ("key", "value")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not the user's
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            verbose=False,
            input_names=["input_ids", "attention_mask", *(f"past_key_values.{n}" for n in names)],
            output_names=["logits", *(f"present.{n}" for n in names)],
        )
    assert exported is not None
    portable = exported.model
    for value in portable.graph.initializers.values():
        value.const_value = None  # fake: bound by name later
    fold_constants(portable)
    ClearMetadataAndDocStringPass()(portable)  # torch's notes hold paths of this machine
    give_roles(portable.graph)
    _name_dimensions(portable.graph)
    portable.opset_imports[DOMAIN] = 1
    for function in functions():
        portable.functions[function.identifier()] = function
    return portable


def _name_dimensions(graph: ir.Graph) -> None:
    """torch's symbols s17, s70 ... by the names of _dynamic."""
    ids, mask, past = graph.inputs[:3]
    assert ids.shape and mask.shape and past.shape
    names = {
        str(ids.shape[0]): "batch",
        str(ids.shape[1]): "sequence",
        str(mask.shape[1]): "total",
        str(past.shape[2]): "past",
    }
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            dims = [d if isinstance(d, int) else names.get(str(d), str(d)) for d in value.shape]
            value.shape = ir.Shape(dims)


def _example(spec: GptOssSpec) -> dict[str, object]:
    batch, new, past = 2, 3, 5
    kv = (batch, spec.num_kv_heads, past, spec.head_dim)
    return {
        "input_ids": torch.zeros(batch, new, dtype=torch.int64),
        "attention_mask": torch.ones(batch, past + new, dtype=torch.int64),
        "past_key_values": [(torch.zeros(kv), torch.zeros(kv)) for _ in range(spec.num_layers)],
    }


def _dynamic(spec: GptOssSpec) -> dict[str, object]:
    batch, new, past, total = (Dim(n) for n in ("batch", "sequence", "past", "total"))
    kv = {0: batch, 2: past}
    return {
        "input_ids": {0: batch, 1: new},
        "attention_mask": {0: batch, 1: total},
        "past_key_values": [(kv, kv) for _ in range(spec.num_layers)],
    }
