"""Traced linears -> their final form: MatMulNBits, or MatMul with the transpose folded.

    Transpose(W) - MatMul - Add(bias)  ->  MatMulNBits(x, codes, scales, bias)

The router decides which experts run, so it stays in float whatever the preset.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gptoss_onnx.graph_passes.linear import linears, lowered
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding
from gptoss_onnx.graph_passes.step import output, replace
from gptoss_onnx.graph_passes.weights import FloatWeight


@dataclass(frozen=True)
class QuantizeLinears:
    """Every linear that is left: o_proj, router and lm_head (q, k, v go with attention)."""

    quantization: Quantization
    rounding: Rounding = SEARCH

    def __call__(self, model: ir.Model) -> int:
        graph, count = model.graph, 0
        for linear in linears(graph):
            form = self.quantization.of_role(linear.role)
            weight = linear.weight.const_value
            bias = None if linear.bias is None else linear.bias.const_value
            assert isinstance(weight, FloatWeight) and isinstance(bias, FloatWeight | None)
            old, name = linear.output, linear.name
            last = output(str(old.name), ir.DataType.FLOAT, old.shape)
            # The old weight's name may be wanted again: free it before it is taken.
            for value in (linear.weight, linear.bias):
                if value is not None:
                    value.name = f"{value.name}.traced"
            nodes = lowered(graph, linear.x, weight, bias, form, self.rounding, name, last)
            replace(graph, linear.nodes, nodes, linear.weight, linear.bias)
            count += 1
        return count
