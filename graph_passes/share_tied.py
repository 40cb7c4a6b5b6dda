"""Tied embeddings in one form are one weight of the package, read by both of its users.

    GatherBlockQuantized(codes [V, H*bits/8], ids, scales)    the same, over the scales and a view
    MatMulNBits(x, codes [V, H/g, g*bits/8], scales)      ->  of the codes that MatMulNBits reads

    Gather(table [V, H], ids)                                 Gather(table, ids)
    MatMul(x, weight [H, V])                              ->  FusedMatMul(x, table), transB

In two formats, as int4's, or rounded by what calibration saw of lm_head's inputs, they stay two.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.rounding import Rounding
from gptoss_onnx.graph_passes.step import discard, output, replace
from gptoss_onnx.graph_passes.weights import StreamedTensor, View
from gptoss_onnx.runtimes.target import Target

TABLE, HEAD = "model.embed_tokens.weight", "lm_head"


def is_shared(quantization: Quantization, rounding: Rounding, target: Target) -> bool:
    """Whether tied embeddings are one weight in a package: both come out the same."""
    embedding, head = quantization.of("embedding"), quantization.of("lm_head")
    alike = embedding == head and (head.bits != 4 or not rounding.statistics)
    fused = target.has_attribute("com.microsoft", "FusedMatMul", "transB")
    return alike and (fused or embedding.kind == "int")


@dataclass(frozen=True)
class ShareTied:
    """Run when both are in their final form, where `is_shared`."""

    quantization: Quantization

    def __call__(self, model: ir.Model) -> int:
        if self.quantization.of("embedding").kind == "float":
            return _share_float(model.graph)
        return _share_codes(model.graph, self.quantization.of("embedding").bits)


def _share_codes(graph: ir.Graph, bits: int) -> int:
    weights = graph.initializers
    codes, scales = weights[f"{TABLE}_q{bits}"], weights[f"{TABLE}_scales"]
    whole = weights[f"{HEAD}.weight_q{bits}"].const_value
    assert isinstance(whole, StreamedTensor) and codes.shape is not None
    view = View(whole, codes.shape.numpy())
    view.name = codes.name
    codes.const_value = view
    scales.replace_all_uses_with(weights[f"{HEAD}.scales"])
    discard(graph, scales)
    return 1


def _share_float(graph: ir.Graph) -> int:
    weight, table = graph.initializers[f"{HEAD}.weight"], graph.initializers[TABLE]
    (node,) = (use for use, _ in weight.uses())
    old = node.outputs[0]
    new = output(str(old.name), ir.DataType.FLOAT, old.shape)
    product = ir.node(
        "FusedMatMul",
        [node.inputs[0], table],
        {"transB": 1},
        domain="com.microsoft",
        outputs=[new],
    )
    replace(graph, [node], [product], weight)
    return 1
