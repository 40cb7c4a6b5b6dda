"""Gather over the float embedding -> GatherBlockQuantized over its blocks.

Gather(embedding [V, H], ids)  ->  GatherBlockQuantized(codes [V, H*bits/8], ids, scales)

Codes are symmetric. A kernel that takes missing zero points for 0 is given them: 8 or 128, all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.quantization import Format
from gptoss_onnx.graph_passes.quantize_rows import quantized_rows
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding
from gptoss_onnx.graph_passes.step import initializer, output, replace
from gptoss_onnx.graph_passes.weight_role import carry_role
from gptoss_onnx.graph_passes.weights import FloatWeight

ZERO_POINTS = 3  # the place of that input


@dataclass(frozen=True)
class QuantizeEmbedding:
    form: Format
    rounding: Rounding = SEARCH
    zero_points: bool = False  # the kernel must be given them

    def __call__(self, model: ir.Model) -> int:
        graph, count = model.graph, 0
        for node in list(graph):
            table = node.inputs[0] if node.op_type == "Gather" else None
            if table is None or not isinstance(table.const_value, FloatWeight):
                continue
            ids, old = node.inputs[1], node.outputs[0]
            round_rows = self.rounding.rounder(str(table.name), self.form)
            pair = quantized_rows(table.const_value, self.form, round_rows, flat=True)
            codes = initializer(graph, f"{table.name}_q{self.form.bits}", pair.packed)
            scales = initializer(graph, f"{table.name}_scales", pair.scales)
            new = output(str(old.name), ir.DataType.FLOAT, old.shape)
            inputs = [codes, ids, scales]
            if self.zero_points:
                inputs.append(self._zero_points(graph, table, scales))
            gather = ir.node(
                "GatherBlockQuantized",
                inputs,
                {
                    "bits": self.form.bits,
                    "block_size": self.form.block,
                    "gather_axis": 0,
                    "quantize_axis": 1,
                },
                domain="com.microsoft",
                outputs=[new],
            )
            replace(graph, [node], [gather], table)
            count += 1
        return count

    def _zero_points(self, graph: ir.Graph, table: ir.Value, scales: ir.Value) -> ir.Value:
        """uint8 [V, ceil(H / block * bits / 8)]"""
        assert scales.const_value is not None and table.const_value is not None
        rows, blocks = scales.const_value.shape.numpy()
        zero = 0x88 if self.form.bits == 4 else 0x80
        points = ir.Tensor(np.full((rows, -(-blocks * self.form.bits // 8)), zero, np.uint8))
        carry_role(table.const_value, points)
        return initializer(graph, f"{table.name}_zero_points", points)
