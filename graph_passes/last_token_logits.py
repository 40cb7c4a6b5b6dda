"""Logits of each row's last token only: the last linear is the largest of the model.

    norm [B, S, H] - lm_head  ->  norm - GatherND(last token of the row) [B, 1, H] - lm_head

The last token of a right-padded row is at query_seqlens - 1; a row without a new token gives
the logits of its first slot, which mean nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.linear import linears
from graph_passes.step import initializer, output

INT64 = ir.DataType.INT64


def last_token_logits(model: ir.Model) -> int:
    graph = model.graph
    counted = next((v for n in graph for v in n.outputs if v.name == "lengths.new_count"), None)
    found = [linear for linear in linears(graph) if linear.name == "lm_head"]
    if counted is None or len(found) != 1:
        return 0
    linear, matmul = found[0], found[0].nodes[1]
    one = initializer(graph, "last_token.one", ir.Tensor(np.array(1)))
    zero = initializer(graph, "last_token.zero", ir.Tensor(np.array(0)))
    axes = initializer(graph, "last_token.axes", ir.Tensor(np.array([1, 2])))
    index = output("last_token.index", INT64)
    clipped = output("last_token.clipped", INT64)
    column = output("last_token.column", INT64)
    hidden = output("last_token.hidden", ir.DataType.FLOAT)
    nodes = [
        ir.node("Sub", [counted, one], outputs=[index]),  # [B]
        ir.node("Max", [index, zero], outputs=[clipped]),
        ir.node("Unsqueeze", [clipped, axes], outputs=[column]),  # [B, 1, 1]
        ir.node("GatherND", [linear.x, column], {"batch_dims": 1}, outputs=[hidden]),
    ]
    graph.insert_before(matmul, nodes)
    matmul.replace_input_with(0, hidden)
    logits = linear.output
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], 1, logits.shape[2]])
    return 1
