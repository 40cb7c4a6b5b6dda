"""Gather over the float embedding -> GatherBlockQuantized over its blocks.

Gather(embedding [V, H], ids)  ->  GatherBlockQuantized(codes [V, H*bits/8], ids, scales)
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graph_passes.quantization import Format
from graph_passes.quantize_rows import quantized_rows
from graph_passes.rounding import SEARCH, Rounding
from graph_passes.step import discard, initializer, output
from graph_passes.weights import FloatWeight


@dataclass(frozen=True)
class QuantizeEmbedding:
    form: Format
    rounding: Rounding = SEARCH

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
            gather = ir.node(
                "GatherBlockQuantized",
                [codes, ids, scales],
                {
                    "bits": self.form.bits,
                    "block_size": self.form.block,
                    "gather_axis": 0,
                    "quantize_axis": 1,
                },
                domain="com.microsoft",
                outputs=[new],
            )
            graph.insert_before(node, gather)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            discard(graph, table)
            count += 1
        return count
