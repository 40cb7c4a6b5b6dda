"""Weights as streams: made when the writer asks for them, one chunk in memory at a time.

A pass that repacks a weight wraps the stream it finds in the graph; nothing is read until the
package is written, and a weight that arrives packed is never inflated on its way through.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
Stream = Callable[[], Iterator[Array]]
CHUNK_BYTES = 32 << 20  # of float32: large enough to keep numpy busy, small beside any budget
Item = TypeVar("Item")
Result = TypeVar("Result")


class TensorSource(Protocol):
    """A stored tensor whose rows can be read without the rest of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self, start: int = 0, stop: int | None = None) -> Array: ...


class ExpertSource(Protocol):
    """One projection of all experts of a layer, (E, N, K), read an expert at a time.

    `read` gives float32 [N, K], or MXFP4 as uint8 (blocks [N, K/32, 16], scales [N, K/32]).
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...
    def read(self, expert: int) -> Any: ...


class StoredBytes(Protocol):
    """Where bytes lie in a file; read only."""

    @property
    def file(self) -> Path: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class StreamedTensor(ir.LazyTensor):
    """A tensor given by a function that yields its elements in order, in chunks.

    `origin` is where the same bytes lie already, when they do: a package may refer to them there.
    """

    def __init__(
        self, chunks: Stream, dtype: ir.DataType, shape: Sequence[int], name: str | None = None
    ) -> None:
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.chunks = chunks
        self.origin: StoredBytes | None = None

    def _whole(self) -> ir.TensorProtocol:
        flat = np.concatenate([np.ascontiguousarray(chunk).reshape(-1) for chunk in self.chunks()])
        dims = self.shape.numpy()
        if self.dtype == ir.DataType.FLOAT8E8M0:
            flat = flat.view(self.dtype.numpy())
        return ir.Tensor(flat.reshape(dims), dtype=self.dtype, name=self.name)


class FloatWeight(StreamedTensor):
    """float32 rows of one stored tensor, or of several of the same width one after the other."""

    def __init__(self, sources: Sequence[TensorSource]) -> None:
        self.sources = tuple(sources)
        rows = sum(source.shape[0] for source in sources)
        super().__init__(self._rows, ir.DataType.FLOAT, (rows, *sources[0].shape[1:]))

    def _rows(self) -> Iterator[Array]:
        for source in self.sources:
            count = source.shape[0]
            row_bytes = 4 * int(np.prod(source.shape[1:]))
            step = max(1, CHUNK_BYTES // max(row_bytes, 1))
            for start in range(0, count, step):
                yield as_float32(source.read(start, min(start + step, count)))


class ExpertWeight(StreamedTensor):
    """float32 [E, N, K] of an expert projection; `source` keeps the form it is stored in."""

    def __init__(self, source: ExpertSource, to_float: Callable[[Any], Array]) -> None:
        self.source, self.to_float = source, to_float

        def decode(expert: int) -> Array:
            return to_float(source.read(expert))

        super().__init__(
            lambda: parallel_map(decode, range(source.shape[0])), ir.DataType.FLOAT, source.shape
        )


class Part(StreamedTensor):
    """Item `index` along the first axis of `whole`, which a package stores once for all its parts.

    `shape` is another view of the same elements.
    """

    def __init__(
        self, whole: StreamedTensor, index: int, shape: Sequence[int] | None = None
    ) -> None:
        self.whole, self.index = whole, index

        def item() -> Iterator[Array]:
            yield whole.numpy()[index]

        super().__init__(item, whole.dtype, shape or whole.shape.numpy()[1:])


class View(Part):
    """All of `whole` in another shape of the same elements."""

    def __init__(self, whole: StreamedTensor, shape: Sequence[int]) -> None:
        super().__init__(whole, 0, shape)
        self.chunks = whole.chunks


def concatenated(weights: Sequence[ir.TensorProtocol | None]) -> FloatWeight:
    """The rows of several float weights as one weight."""
    return FloatWeight([source for weight in weights for source in _stored(weight).sources])


def _stored(weight: ir.TensorProtocol | None) -> FloatWeight:
    assert isinstance(weight, FloatWeight), f"{weight!r} is not a stored float weight"
    return weight


@dataclass(frozen=True)
class _Scaled:
    source: TensorSource
    factor: np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        return as_float32(self.source.read(start, stop)) * self.factor


def scaled(weight: ir.TensorProtocol | None, factor: float) -> FloatWeight:
    """A float weight times `factor`: a power of two rounds nothing."""
    sources = _stored(weight).sources
    return FloatWeight([_Scaled(source, np.float32(factor)) for source in sources])


def transposed(weight: FloatWeight) -> StreamedTensor:
    """[N, K] as [K, N]; the one repacking that must hold a whole tensor."""
    rows, columns = weight.shape.numpy()

    def chunks() -> Iterator[Array]:
        out = np.empty((columns, rows), np.float32)
        done = 0
        for chunk in weight.chunks():
            out[:, done : done + len(chunk)] = chunk.T
            done += len(chunk)
        yield out

    return StreamedTensor(chunks, ir.DataType.FLOAT, (columns, rows))


class PackedPair:
    """Packed codes and their scales, two tensors out of one reading.

    The writer asks for the codes first; the scales, an eighth of their size or less, wait in
    memory until they are asked for. `pairs` yields (codes, scales) in order.
    """

    def __init__(
        self,
        pairs: Callable[[], Iterator[tuple[Array, Array]]],
        packed_shape: Sequence[int],
        scale_shape: Sequence[int],
        scale_dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> None:
        self._pairs = pairs
        self._waiting: list[Array] | None = None
        self.packed = StreamedTensor(self._packed_chunks, ir.DataType.UINT8, packed_shape)
        self.scales = StreamedTensor(self._scale_chunks, scale_dtype, scale_shape)

    def _packed_chunks(self) -> Iterator[Array]:
        waiting = []
        for packed, scales in self._pairs():
            waiting.append(scales)
            yield packed
        self._waiting = waiting

    def _scale_chunks(self) -> Iterator[Array]:
        if self._waiting is None:
            for _ in self._packed_chunks():
                pass
        waiting, self._waiting = self._waiting or [], None
        yield from waiting


def as_float32(array: Array) -> NDArray[np.float32]:
    """float32 of any stored float; bfloat16 by its bits, many times faster than a cast."""
    if array.dtype.name == "bfloat16":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` on as many threads as cores, in order, never more than one result ahead a thread."""
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)
    with ThreadPoolExecutor(workers) as pool:
        running: deque[Future[Result]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
