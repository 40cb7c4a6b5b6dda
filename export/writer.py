"""Weights into data files: in graph order, aligned, each read once and hashed as it is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.weights import Part, StreamedTensor
from gptoss_onnx.runtimes.errors import UserError

EMBEDDED_BYTES = 1024  # smaller tensors stay in model.onnx: shapes and axes must be there
PAGE = 1 << 16  # Windows maps files in steps of 64 KiB; every other system in smaller ones
CACHE_LINE = 64
Progress = Callable[[int], None]  # told the bytes written since the last call


@dataclass
class DataWriter:
    """Writes a graph's weights under `folder` and binds them as external data.

    `link` maps a file of the checkpoint to its name in the package: bytes that lie there already
    are referred to and not copied. `sha256` has the digest of each file written.
    """

    folder: Path
    name: str
    max_bytes: int | None = None
    link: dict[Path, str] = field(default_factory=dict)
    progress: Progress = lambda count: None
    sha256: dict[str, str] = field(default_factory=dict)

    def write(self, *graphs: ir.Graph) -> None:
        """Write each weight of the graphs once; UserError when the disk is full."""
        try:
            with _DataFiles(self) as files:
                for value in chain.from_iterable(map(_in_order_of_use, graphs)):
                    tensor = value.const_value
                    assert tensor is not None, f"{value.name} is bound to nothing"
                    if tensor.nbytes < EMBEDDED_BYTES:
                        value.const_value = ir.Tensor(
                            tensor.numpy(), dtype=tensor.dtype, name=value.name
                        )
                    else:
                        value.const_value = self._place(tensor, files)
        except OSError as error:
            raise UserError(
                f"{self.folder.parent}: cannot write the package ({error.strerror or error}); "
                "free space there or choose another --output"
            ) from error

    def _place(self, tensor: ir.TensorProtocol, files: _DataFiles) -> ir.ExternalTensor:
        origin = tensor.origin if isinstance(tensor, StreamedTensor) else None
        if origin is not None and origin.file in self.link:
            self.progress(tensor.nbytes)
            location, offset = self.link[origin.file], origin.offset
        elif isinstance(tensor, Part):
            location, start = files.place(tensor.whole)
            offset = start + tensor.index * tensor.nbytes
        else:
            location, offset = files.place(tensor)
        return ir.ExternalTensor(
            location,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=str(tensor.name),
            base_dir=self.folder,
        )


class _DataFiles:
    """name.data, name.data.1, ...: the next begins where a tensor would pass `max_bytes`."""

    def __init__(self, writer: DataWriter) -> None:
        self._writer = writer
        self._file: BinaryIO | None = None
        self._count = 0
        self._written: dict[object, tuple[str, int]] = {}

    def __enter__(self) -> _DataFiles:
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        if failure is None:
            self._close()
        elif self._file is not None:
            self._file.close()  # to be thrown away: not worth waiting for the disk

    def _append(self, tensor: ir.TensorProtocol) -> tuple[str, int]:
        limit = self._writer.max_bytes
        alignment = PAGE if tensor.nbytes >= PAGE else CACHE_LINE
        if self._file is not None and limit and self._size:
            padded = self._size + -self._size % alignment
            if padded + tensor.nbytes > limit:
                self._close()
        if self._file is None:
            self._next()
        self._pad(alignment)
        offset = self._size
        chunks = tensor.chunks() if isinstance(tensor, StreamedTensor) else [tensor.numpy()]
        for chunk in chunks:
            self._put(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
            self._writer.progress(chunk.nbytes)
        if self._size - offset != tensor.nbytes:
            raise AssertionError(f"{tensor.name}: {self._size - offset} of {tensor.nbytes} bytes")
        return self._name, offset

    def place(self, tensor: ir.TensorProtocol) -> tuple[str, int]:
        """The tensor's file and its offset there, written now unless it was before."""
        key = identity(tensor)
        if key not in self._written:
            self._written[key] = self._append(tensor)
        return self._written[key]

    def _next(self) -> None:
        suffix = f".{self._count}" if self._count else ""
        self._name, self._size, self._digest = self._writer.name + suffix, 0, hashlib.sha256()
        self._file = (self._writer.folder / self._name).open("wb")
        self._count += 1

    def _pad(self, alignment: int) -> None:
        self._put(bytes(-self._size % alignment))

    def _put(self, data: Any) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def _close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())  # a full disk must show here, not after the rename
            self._file.close()
            self._writer.sha256[self._name] = self._digest.hexdigest()
            self._file = None


def identity(tensor: ir.TensorProtocol) -> object:
    """What tells weights of one export apart, across its graphs: equal bytes have one name."""
    return str(tensor.name), tensor.dtype, tensor.nbytes


def _in_order_of_use(graph: ir.Graph) -> list[ir.Value]:
    """Initializers in the order nodes first read them, so that a run reads the file forward."""
    ordered: dict[str, ir.Value] = {}
    for node in graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.is_initializer():
                ordered.setdefault(str(value.name), value)
    return list(ordered.values())
