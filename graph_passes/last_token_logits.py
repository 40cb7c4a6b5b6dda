"""Logits of each row's last token only: the last linear is the largest of the model.

    norm [B, S, H] - lm_head  ->  norm - GatherND(last token of the row) [B, 1, H] - lm_head

The last token of a right-padded row is at query_seqlens - 1; a row without a new token gives
the logits of its first slot, which mean nothing. Where rows are not padded it is the last slot:
nothing is counted, so the mask may be longer than what is in use, as CUDA graphs want it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.linear import linears
from gptoss_onnx.graph_passes.step import initializer, output

INT64 = ir.DataType.INT64


@dataclass(frozen=True)
class LastTokenLogits:
    """`padded`: rows may get different numbers of tokens at once."""

    padded: bool = True

    def __call__(self, model: ir.Model) -> int:
        graph = model.graph
        found = [linear for linear in linears(graph) if linear.role.group == "lm_head"]
        if len(found) != 1:
            return 0
        linear, matmul = found[0], found[0].nodes[1]
        hidden = output("last_token.hidden", ir.DataType.FLOAT)
        select = _last_counted if self.padded else _last_slot
        nodes = select(graph, linear.x, hidden)
        if not nodes:
            return 0
        graph.insert_before(matmul, nodes)
        matmul.replace_input_with(0, hidden)
        logits = linear.output
        assert logits.shape is not None
        logits.shape = ir.Shape([logits.shape[0], 1, logits.shape[2]])
        return 1


def _last_counted(graph: ir.Graph, x: ir.Value, hidden: ir.Value) -> list[ir.Node]:
    """By the lengths that attention put into the graph; nothing where it has none."""
    counted = next((v for n in graph for v in n.outputs if v.name == "lengths.new_count"), None)
    if counted is None:
        return []
    one, zero = _constant(graph, "one", 1), _constant(graph, "zero", 0)
    index = output("last_token.index", INT64)
    clipped = output("last_token.clipped", INT64)
    column = output("last_token.column", INT64)
    return [
        ir.node("Sub", [counted, one], outputs=[index]),  # [B]
        ir.node("Max", [index, zero], outputs=[clipped]),
        ir.node("Unsqueeze", [clipped, _constant(graph, "axes", [1, 2])], outputs=[column]),
        ir.node("GatherND", [x, column], {"batch_dims": 1}, outputs=[hidden]),  # [B, 1, H]
    ]


def _last_slot(graph: ir.Graph, x: ir.Value, hidden: ir.Value) -> list[ir.Node]:
    end = np.iinfo(np.int64).max
    bounds = [
        _constant(graph, name, [value])
        for name, value in (("first", -1), ("end", end), ("axis", 1))
    ]
    return [ir.node("Slice", [x, *bounds], outputs=[hidden])]


def _constant(graph: ir.Graph, name: str, value: object) -> ir.Value:
    return initializer(graph, f"last_token.{name}", ir.Tensor(np.asarray(value, np.int64)))
