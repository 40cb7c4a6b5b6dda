"""Nodes in a row, written one after the other: how a pass writes more than two of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.step import output, shared_constant

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


class Nodes:
    """Nodes of one graph in order, their outputs named after `name`; constants are the model's.

    `nodes` are to be inserted into a graph, or are a branch's of their own (`graph`).
    """

    def __init__(self, model_graph: ir.Graph, name: str) -> None:
        self.name = name
        self.nodes: list[ir.Node] = []
        self._model_graph = model_graph

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        dtype: ir.DataType = FLOAT,
        domain: str = "",
        **attributes: object,
    ) -> ir.Value:
        """A node of one output, which is returned."""
        return self.add_to([output(f"{self.name}.{name}", dtype)], op, inputs, domain, **attributes)

    def add_to(
        self,
        outputs: Sequence[ir.Value],
        op: str,
        inputs: Sequence[ir.Value | None],
        domain: str = "",
        **attributes: object,
    ) -> ir.Value:
        """A node whose outputs are there already; returns the first."""
        self.nodes.append(ir.node(op, inputs, attributes, domain=domain, outputs=outputs))  # type: ignore[arg-type]
        return outputs[0]

    def split(
        self, value: ir.Value, names: Sequence[str], axis: int, sizes: Sequence[int] | None = None
    ) -> list[ir.Value]:
        """Parts of `value` along an axis, of these sizes or all of one."""
        assert value.dtype is not None
        parts = [output(f"{self.name}.{name}", value.dtype) for name in names]
        if sizes is None:
            self.add_to(parts, "Split", [value], axis=axis, num_outputs=len(parts))
        else:
            self.add_to(parts, "Split", [value, self.constant(list(sizes))], axis=axis)
        return parts

    def reshape(self, value: ir.Value, shape: Sequence[int] | ir.Value, name: str) -> ir.Value:
        """The same elements in another shape; 0 keeps a dimension, -1 takes what is left."""
        assert value.dtype is not None
        wanted = shape if isinstance(shape, ir.Value) else self.constant(list(shape))
        return self.add("Reshape", [value, wanted], name, value.dtype)

    def constant(self, value: object) -> ir.Value:
        """A small constant, shared by the whole model."""
        array = np.asarray(value)
        shown = "_".join(map(str, array.reshape(-1).tolist()))
        rank = "" if array.ndim else "scalar_"
        return shared_constant(self._model_graph, f"constant.{rank}{shown}", array)

    def graph(self) -> ir.Graph:
        """A branch of these nodes, which gives the last one's output."""
        return ir.Graph([], [self.nodes[-1].outputs[0]], nodes=self.nodes, name=self.name)
