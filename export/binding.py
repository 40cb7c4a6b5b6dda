"""The checkpoint's tensors into the graph by role, as streams: nothing is read here."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gptoss_onnx.export.checkpoint import EMBEDDING, Checkpoint, Projection
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.weight_role import give_role, role_of
from gptoss_onnx.graph_passes.weights import Array, ExpertWeight, FloatWeight

_PROJECTIONS: dict[str, Projection] = {"gate_up": "gate_up_proj", "down": "down_proj"}


def bind(model: ir.Model, checkpoint: Checkpoint) -> None:
    """Give every initializer of the portable graph its weight, float32 by definition."""
    tables = _rope_tables(checkpoint.spec)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue  # a constant of the graph itself
        role = role_of(value)
        if role.group == "rope":
            tensor: ir.TensorProtocol = tables[role.part]
        elif role.group == "experts" and not role.is_bias:
            assert role.layer is not None
            source = checkpoint.expert_weight(role.layer, _PROJECTIONS[role.part])
            tensor = ExpertWeight(source, _to_float)
        else:
            tied = role.group == "lm_head" and checkpoint.spec.tie_word_embeddings
            tensor = FloatWeight([checkpoint.tensors[EMBEDDING if tied else name]])
        expected = value.shape.numpy() if value.shape is not None else ()
        assert tensor.shape.numpy() == expected, f"{name}: {tensor.shape} is not {expected}"
        tensor.name = name
        give_role(tensor, role)
        value.const_value = tensor


def _to_float(stored: Any) -> Array:
    return mxfp4.decode(*stored) if isinstance(stored, tuple) else np.asarray(stored)


def _rope_tables(spec: GptOssSpec) -> dict[str, ir.TensorProtocol]:
    cos, sin = spec.rope.tables(spec.head_dim, spec.max_position_embeddings)
    return {"cos": ir.Tensor(cos), "sin": ir.Tensor(sin)}
