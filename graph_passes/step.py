"""A step of a recipe: a rewrite and how often it must happen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import RewriteRuleSet


class PassError(Exception):
    """A pass did not do what the spec says it must; the graph is not the one expected."""


@dataclass(frozen=True)
class Step:
    """`apply` rewrites a model in place and returns how many times; `expected` is that number."""

    name: str
    apply: Callable[[ir.Model], int]
    expected: int

    def run(self, model: ir.Model, done: list[str]) -> None:
        """Apply once; PassError unless the count is exactly right."""
        count = self.apply(model)
        if count != self.expected:
            raise PassError(
                f"{self.name}: rewrote {count} of {self.expected} places"
                f" (after {', '.join(done) or 'nothing'})"
            )
        done.append(self.name)


def rules(*rewrites: RewriteRuleSet) -> Callable[[ir.Model], int]:
    """Rewrite rules as a step's function."""
    return lambda model: sum(rewrite.apply_to_model(model) for rewrite in rewrites)


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new weight of the graph, bound to `tensor`."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    tensor.name = name
    graph.register_initializer(value)
    return value


def shared_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The constant called `name`, made where it is not there yet."""
    return graph.initializers.get(name) or initializer(graph, name, ir.Tensor(array))


def replace(
    graph: ir.Graph,
    old: Sequence[ir.Node],
    new: Sequence[ir.Node],
    *weights: ir.Value | None,
    outputs: Sequence[ir.Value] | None = None,
) -> None:
    """Put `new` where the last of `old` is, whose outputs become `outputs`, by default those of
    the last of `new`. Of `weights`, which `old` read, those that nothing else reads are dropped.
    """
    graph.insert_before(old[-1], new)
    outputs = new[-1].outputs if outputs is None else outputs
    ir.convenience.replace_all_uses_with(old[-1].outputs, outputs, replace_graph_outputs=True)
    graph.remove(reversed(old), safe=True)
    discard(graph, *weights)


def discard(graph: ir.Graph, *values: ir.Value | None) -> None:
    """Drop weights that nothing reads any more."""
    for value in values:
        if value is not None and not value.uses() and str(value.name) in graph.initializers:
            del graph.initializers[str(value.name)]


def output(name: str, dtype: ir.DataType, shape: ir.Shape | None = None) -> ir.Value:
    """A typed value for a new node's output."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
