"""GatherBlockQuantized -> the same rows from stock operators, for runtimes without it.

    GatherBlockQuantized(codes [V, H*bits/8], ids, scales [V, H/g])
        ->  (Gather(codes, ids) - zero) * Gather(scales, ids)

Only the rows of the ids are unpacked.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.nodes import FLOAT, Nodes
from gptoss_onnx.graph_passes.step import output, replace

UINT8 = ir.DataType.UINT8


def unpack_embedding(model: ir.Model) -> int:
    found = [node for node in model.graph if node.op_type == "GatherBlockQuantized"]
    for node in found:
        _unpack(model.graph, node)
    return len(found)


def _unpack(graph: ir.Graph, node: ir.Node) -> None:
    codes, ids, scales = (value for value in node.inputs if value is not None)
    bits, block = node.attributes.get_int("bits"), node.attributes.get_int("block_size")
    nodes = Nodes(graph, "embedding")
    rows = nodes.add("Gather", [codes, ids], "codes", UINT8, axis=0)  # [B, S, H*bits/8]
    if bits == 4:
        rows = _nibbles(nodes, rows)
    numbers = nodes.add("Cast", [rows], "numbers", to=FLOAT.value)
    blocks = nodes.reshape(numbers, [0, 0, -1, block], "blocks")  # [B, S, H/g, g]
    centred = nodes.add("Sub", [blocks, nodes.constant(np.float32(2 ** (bits - 1)))], "centred")
    mine = nodes.add("Gather", [scales, ids], "scales", axis=0)
    column = nodes.add("Unsqueeze", [mine, nodes.constant([-1])], "scale_column")
    scaled = nodes.add("Mul", [centred, column], "scaled")
    old = node.outputs[0]
    last = output(str(old.name), FLOAT, old.shape)
    nodes.add_to([last], "Reshape", [scaled, nodes.constant([0, 0, -1])])
    replace(graph, [node], nodes.nodes)


def _nibbles(nodes: Nodes, rows: ir.Value) -> ir.Value:
    """Two codes of each byte, the low one first: uint8 [B, S, n, 2] of [B, S, n]."""
    low = nodes.add("BitwiseAnd", [rows, nodes.constant(np.uint8(15))], "low", UINT8)
    four = nodes.constant(np.uint8(4))
    high = nodes.add("BitShift", [rows, four], "high", UINT8, direction="RIGHT")
    pair = [
        nodes.add("Unsqueeze", [value, nodes.constant([-1])], f"{name}_column", UINT8)
        for value, name in ((low, "low"), (high, "high"))
    ]
    return nodes.add("Concat", pair, "nibbles", UINT8, axis=-1)
