"""Nodes of an .ort file, ONNX Runtime's own flatbuffer form of a graph with its weights inside."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import pack_into, unpack_from
from typing import Any

import onnxruntime.tools.ort_format_model  # noqa: F401  (puts ort_flatbuffers_py on the path)
from ort_flatbuffers_py import fbs

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.target import Target

ORT = ".ort"
_ATTRIBUTES = 24  # the field in a node's table


@dataclass(frozen=True)
class OrtNode:
    """One node; `graphs` are its branches."""

    table: Any

    @property
    def name(self) -> str:
        return (self.table.Name() or b"").decode()

    @property
    def domain(self) -> str:
        return (self.table.Domain() or b"").decode()

    @property
    def op_type(self) -> str:
        return (self.table.OpType() or b"").decode()

    @property
    def inputs(self) -> int:
        return int(self.table.InputsLength())

    @property
    def attributes(self) -> dict[str, Any]:
        """By name; numbers and texts as they are, anything else as None."""
        return {_name(entry): _value(entry) for entry in self._entries()}

    @property
    def graphs(self) -> list[Any]:
        kind = fbs.AttributeType.AttributeType.GRAPH
        return [entry.G() for entry in self._entries() if entry.Type() == kind]

    def refusal(self, target: Target) -> str | None:
        """Why `target` has no kernel for the node; None when it has. Element types aside."""
        return target.refusal(self.domain, self.op_type, self.attributes, self.inputs)

    def _entries(self) -> list[Any]:
        return [self.table.Attributes(i) for i in range(self.table.AttributesLength())]

    def drop(self, names: Iterable[str]) -> None:
        """Take attributes out, in place: those that stay move up in the node's list of offsets."""
        gone = set(names)
        if not gone:
            return
        tab = self.table._tab
        start = tab.Vector(tab.Offset(_ATTRIBUTES))
        places = [start + 4 * i for i in range(self.table.AttributesLength())]
        entries = [place + unpack_from("<I", tab.Bytes, place)[0] for place in places]
        stays = [_name(entry) not in gone for entry in self._entries()]
        kept = [entry for entry, stay in zip(entries, stays, strict=True) if stay]
        for place, entry in zip(places, kept, strict=False):
            pack_into("<I", tab.Bytes, place, entry - place)
        pack_into("<I", tab.Bytes, start - 4, len(kept))


def _name(entry: Any) -> str:
    return str(entry.Name().decode())


def _value(entry: Any) -> Any:
    kinds = fbs.AttributeType.AttributeType
    kind = entry.Type()
    if kind == kinds.INT:
        return entry.I()
    if kind == kinds.FLOAT:
        return entry.F()
    if kind == kinds.STRING:
        return entry.S().decode()
    return None


@contextmanager
def ort_nodes(file: Path, *, write: bool = False) -> Iterator[list[OrtNode]]:
    """Every node of `file`, those of branches too; what `write` changes is in the file.

    UserError where it is no such file.
    """
    with file.open("r+b" if write else "rb") as stream:
        access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
        with mmap.mmap(stream.fileno(), 0, access=access) as buffer:
            nodes = _nodes(buffer)
            if nodes is None:
                raise UserError(f"{file}: cannot be read as a graph")
            yield nodes
            for node in nodes:
                object.__setattr__(node, "table", None)  # their views would keep the map open


def _nodes(buffer: mmap.mmap) -> list[OrtNode] | None:
    try:
        session = fbs.InferenceSession.InferenceSession.GetRootAs(buffer, 0)
        return list(_walk(session.Model().Graph()))
    except Exception:  # flatbuffers trusts what it reads
        return None


def _walk(graph: Any) -> Iterator[OrtNode]:
    for i in range(graph.NodesLength()):
        node = OrtNode(graph.Nodes(i))
        yield node
        for branch in node.graphs:
            yield from _walk(branch)
