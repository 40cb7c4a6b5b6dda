"""Weights that one branch alone reads, from the graph around it into the branch.

    weights; If(then: MatMulNBits(x, weights))  ->  If(then: weights; MatMulNBits(x, weights))

ONNX Runtime before 1.29 needs it on arm64 processors with dot products (Raspberry Pi 5, phones):
prepacking a MatMulNBits it looks for the scales in the node's own graph, and without them it
crashes at load (microsoft/onnxruntime#31137).
"""

from __future__ import annotations

import onnx_ir as ir


def weights_into_branches(model: ir.Model) -> int:
    """Change a graph whose weights are written; how many it moved."""
    moved = 0
    for name, value in list(model.graph.initializers.items()):
        readers = {id(use.node.graph): use.node.graph for use in value.uses()}
        branch = readers.popitem()[1] if len(readers) == 1 else model.graph
        if isinstance(branch, ir.Graph) and branch is not model.graph:
            del model.graph.initializers[name]
            branch.register_initializer(value)
            moved += 1
    return moved
