"""Graphs read without ONNX Runtime, weights unread: a package's, as a stranger's, and our own.

Files keep no roles, so whoever loads a graph gets it from here, where names are read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from gptoss_onnx.graph_passes.weight_role import give_roles
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import read_manifest


def load_portable(graph: Path) -> ir.Model:
    """The portable graph that `export_portable` wrote, with the roles of its weights."""
    model = ir.load(graph)
    give_roles(model.graph)
    return model


def load_graph(folder: Path, graph: str) -> ir.Model:
    """UserError for what is no graph, or has weights in a file that the manifest does not name.

    ONNX Runtime refuses data outside the package by itself; onnx_ir would read it.
    """
    with reading(folder / graph):
        model = ir.load(folder / graph)
    weights = [v.const_value for part in model.graphs() for v in part.initializers.values()]
    weights += [
        attribute.as_tensor()
        for node in model.graph.all_nodes()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()
    ]
    named = {str(weight.location) for weight in weights if isinstance(weight, ir.ExternalTensor)}
    if stray := sorted(named - set(read_manifest(folder)["files"])):
        raise UserError(
            f"{folder / graph}: has weights in {stray[0]!a}, which is not among the files of "
            "manifest.json; the package is damaged or not to be trusted"
        )
    give_roles(model.graph)
    return model


@contextmanager
def reading(graph: Path) -> Iterator[None]:
    """One line for what is no graph: the errors of its readers are of no one kind."""
    try:
        yield
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{graph}: cannot be read as a graph ({line})") from error
