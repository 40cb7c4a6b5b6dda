"""MatMulNBits -> as a target's kernel reads it: its bias as an Add, its zero points as an input.

    MatMulNBits(x, codes, scales, -, -, bias)  ->  Add(MatMulNBits(x, codes, scales, zeros), bias)

Codes are symmetric, so the zero points are all 8 (of 4 bits) or 128: one constant for each size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.step import output, replace, shared_constant

SCALES, BIAS = 2, 5  # inputs of the operator; zero points follow the scales


@dataclass(frozen=True)
class FitLinears:
    """`inputs` and `min_inputs` are the kernel's. Branches are fitted too, but not counted."""

    inputs: int
    min_inputs: int

    def __call__(self, model: ir.Model) -> int:
        found = [node for node in model.graph.all_nodes() if node.op_type == "MatMulNBits"]
        count = sum(node.graph is model.graph for node in found)
        for node in found:
            inputs = list(node.inputs)
            bias = None
            if len(inputs) > BIAS >= self.inputs:
                bias, inputs = inputs[BIAS], inputs[: SCALES + 1]
            if len(inputs) == SCALES + 1 < self.min_inputs:
                inputs.append(_zero_points(model.graph, node))
            _replace(node, inputs, bias)
        return count


def _replace(node: ir.Node, inputs: list[ir.Value | None], bias: ir.Value | None) -> None:
    graph, old = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph) and old.dtype is not None
    last = output(str(old.name), old.dtype, old.shape)
    product = last if bias is None else output(f"{old.name}.product", old.dtype)
    new = ir.node(
        "MatMulNBits",
        inputs,
        {name: attribute.value for name, attribute in node.attributes.items()},
        domain=node.domain,
        outputs=[product],
        name=node.name,
    )
    nodes = [new] if bias is None else [new, ir.node("Add", [product, bias], outputs=[last])]
    replace(graph, [node], nodes)


def _zero_points(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """uint8 [N, ceil(K / block * bits / 8)]"""
    rows, columns, bits, block = (
        node.attributes.get_int(name) for name in ("N", "K", "bits", "block_size")
    )
    width = -(-(-(-columns // block) * bits) // 8)
    array = np.full((rows, width), 0x88 if bits == 4 else 0x80, np.uint8)
    return shared_constant(graph, f"zero_points.{bits}.{rows}x{width}", array)
