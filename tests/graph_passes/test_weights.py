"""Streams of weights: the right bytes in the right order, and never more than a chunk of them."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_onnx.graph_passes import weights
from gptoss_onnx.graph_passes.weights import (
    ExpertWeight,
    FloatWeight,
    PackedPair,
    StreamedTensor,
    as_float32,
    concatenated,
    parallel_map,
    transposed,
)


class Stored:
    """A tensor of known values that tells what was read of it."""

    def __init__(self, *shape: int, dtype: Any = np.float32, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.values = rng.standard_normal(shape, np.float32).astype(dtype)
        self.shape, self.reads = shape, list[tuple[int, int]]()

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        self.reads.append((start, self.shape[0] if stop is None else stop))
        return self.values[start:stop]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK_BYTES", 4 * 8 * 10)  # ten rows of eight float32


def whole(tensor: StreamedTensor) -> NDArray[Any]:
    return np.concatenate([chunk.reshape(-1) for chunk in tensor.chunks()])


def test_nothing_is_read_before_it_is_asked_for() -> None:
    source = Stored(25, 8)
    weight = concatenated([FloatWeight([source]), FloatWeight([source])])
    turned = transposed(weight)
    assert (weight.shape.numpy(), turned.shape.numpy()) == ((50, 8), (8, 50))
    assert weight.nbytes == turned.nbytes == 1600
    assert source.reads == []


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_come_in_order_in_chunks(dtype: Any) -> None:
    source = Stored(25, 8, dtype=dtype)
    weight = FloatWeight([source])
    chunks = list(weight.chunks())
    assert source.reads == [(0, 10), (10, 20), (20, 25)]
    assert [chunk.dtype for chunk in chunks] == [np.float32] * 3
    expected = source.values.astype(np.float32)
    np.testing.assert_array_equal(np.concatenate(chunks), expected)
    np.testing.assert_array_equal(weight.numpy(), expected)  # and as a whole, a second time


@pytest.mark.usefixtures("small_chunks")
def test_concatenated_rows_follow_one_another() -> None:
    sources = [Stored(rows, 8, seed=rows) for rows in (12, 3, 25)]
    weight = concatenated([FloatWeight(sources[:2]), FloatWeight(sources[2:])])
    assert weight.shape.numpy() == (40, 8)
    expected = np.concatenate([source.values for source in sources])
    np.testing.assert_array_equal(whole(weight).reshape(40, 8), expected)


def test_concatenated_refuses_what_is_no_float_weight() -> None:
    for other in (None, ir.Tensor(np.zeros((2, 8), np.float32))):
        with pytest.raises(AssertionError, match="is not a stored float weight"):
            concatenated([FloatWeight([Stored(2, 8)]), other])


@pytest.mark.usefixtures("small_chunks")
def test_transposed_is_the_transpose() -> None:
    source = Stored(25, 8)
    turned = transposed(FloatWeight([source]))
    np.testing.assert_array_equal(whole(turned).reshape(8, 25), source.values.T)
    np.testing.assert_array_equal(turned.numpy(), source.values.T)


def test_a_vector_is_a_weight_too() -> None:
    source = Stored(7)
    np.testing.assert_array_equal(FloatWeight([source]).numpy(), source.values)


def test_bfloat16_converts_by_its_bits_exactly() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    finite = every[np.isfinite(every.astype(np.float32))]
    np.testing.assert_array_equal(as_float32(finite), finite.astype(np.float32))
    assert np.isnan(as_float32(every)).sum() == np.isnan(every.astype(np.float32)).sum() > 0


def test_experts_come_in_order() -> None:
    class Experts:
        shape = (6, 3, 4)

        def read(self, expert: int) -> int:
            return expert

    weight = ExpertWeight(Experts(), lambda expert: np.full((3, 4), expert, np.float32))
    expected = np.repeat(np.arange(6, dtype=np.float32), 12).reshape(6, 3, 4)
    np.testing.assert_array_equal(weight.numpy(), expected)


class Pairs:
    """Codes and scales of five pieces; counts how often they were made."""

    def __init__(self, dtype: Any = np.float32) -> None:
        self.passes, self.dtype = 0, dtype

    def __call__(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        self.passes += 1
        for i in range(5):
            yield np.full((2, 4), i, np.uint8), np.full((2, 1), 10 + i, self.dtype)

    def pair(self, scale_dtype: ir.DataType = ir.DataType.FLOAT) -> PackedPair:
        return PackedPair(self, (10, 4), (10, 1), scale_dtype)


CODES = np.repeat(np.arange(5, dtype=np.uint8), 8).reshape(10, 4)
SCALES = np.repeat(np.arange(10, 15, dtype=np.float32), 2).reshape(10, 1)


def test_codes_then_scales_are_one_reading() -> None:
    made = Pairs()
    pair = made.pair()
    np.testing.assert_array_equal(whole(pair.packed).reshape(10, 4), CODES)
    np.testing.assert_array_equal(whole(pair.scales).reshape(10, 1), SCALES)
    assert made.passes == 1


def test_scales_first_and_scales_again_are_right_too() -> None:
    made = Pairs()
    pair = made.pair()
    for _ in range(2):
        np.testing.assert_array_equal(whole(pair.scales).reshape(10, 1), SCALES)
    np.testing.assert_array_equal(pair.packed.numpy(), CODES)
    np.testing.assert_array_equal(pair.scales.numpy(), SCALES)
    assert made.passes == 3


def test_an_unfinished_reading_leaves_no_scales() -> None:
    made = Pairs()
    pair = made.pair()
    next(iter(pair.packed.chunks()))
    np.testing.assert_array_equal(whole(pair.scales).reshape(10, 1), SCALES)


def test_e8m0_scales_keep_their_bytes() -> None:
    scales = Pairs(np.uint8).pair(ir.DataType.FLOAT8E8M0).scales
    assert (scales.dtype, scales.nbytes) == (ir.DataType.FLOAT8E8M0, 10)
    np.testing.assert_array_equal(scales.numpy().view(np.uint8), SCALES.astype(np.uint8))


WORKERS = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)


def test_parallel_map_keeps_the_order() -> None:
    first_may_end = threading.Event()

    def slow_first(item: int) -> int:
        if item == 0 and WORKERS > 1:
            assert first_may_end.wait(10)
        if item == 1:
            first_may_end.set()
        return item * item

    assert list(parallel_map(slow_first, range(20))) == [i * i for i in range(20)]


def test_parallel_map_is_bounded() -> None:
    """However slow the reader: one result a thread, and one ahead."""
    started: list[int] = []
    results = parallel_map(lambda item: started.append(item), range(100))
    for taken, _ in zip(range(1, 50), results, strict=False):
        assert len(started) <= taken + WORKERS


def test_parallel_map_raises_what_the_function_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda item: 1 // (3 - item), range(10)))


def test_a_large_weight_is_never_held() -> None:
    """256 MB of float32 from bfloat16: a chunk of 32 MB, its source, and the shift's copy."""

    class Large:
        shape = (1 << 14, 1 << 12)

        def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
            assert stop is not None
            return np.empty((stop - start, self.shape[1]), ml_dtypes.bfloat16)

    weight = FloatWeight([Large()])
    tracemalloc.start()
    try:
        total = sum(chunk.nbytes for chunk in weight.chunks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == weight.nbytes == 1 << 28
    # While a chunk is made, the one before it is still the reader's.
    assert peak <= 4 * weights.CHUNK_BYTES
