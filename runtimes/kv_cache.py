"""KV tensors of a batch: in NumPy memory, on a device, or handed from each run to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gptoss_onnx.runtimes.errors import UserError

Array = NDArray[Any]

# Providers whose kernels would copy a cache in NumPy memory at every run, and what they call their
# own memory.
DEVICES: Mapping[str, str] = {"CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}
# Element types: NumPy's for the bytes (it has no bfloat16) and ONNX's number.
_STORED = {
    "float32": (np.float32, 1),
    "float16": (np.float16, 10),
    "bfloat16": (np.uint16, 16),
    "int8": (np.int8, 3),
}
KV_DTYPES = tuple(_STORED)


def row_bytes(dtype: str, kv_heads: int, head_dim: int) -> int:
    """Bytes of one token's key or value."""
    return int(np.dtype(_STORED[dtype][0]).itemsize) * kv_heads * head_dim


class KvBuffer:
    """One KV tensor [B, kv_heads, C, D], bound as past and as present so that it never moves.

    In NumPy memory, which the CPU provider computes in.
    """

    def __init__(
        self, past: str, present: str, shape: tuple[int, ...], window: int | None, dtype: str
    ) -> None:
        self.past, self.present, self.window, self.dtype = past, present, window, dtype
        # Zeros cost nothing until a page is touched, and keep NaNs out of rows nobody wrote.
        self.array: Array = np.zeros(shape, _STORED[dtype][0])

    @property
    def capacity(self) -> int:
        return int(self.array.shape[2])

    def first_position(self, length: int) -> int:
        """Position that row 0 holds after `length` tokens: `T - L(T)` in the operator's doc."""
        if self.window is None or length <= self.capacity:
            return 0
        evicted = self.capacity - self.window + 1  # at a time
        return -(-(length - self.capacity) // evicted) * evicted

    def grow(self, capacity: int, used: int) -> None:
        self.array = _grown(self.array, capacity, used)

    def bind(self, binding: onnxruntime.IOBinding, first: int, count: int) -> None:
        """Bind `count` sequences from `first` on: neighbours in memory, so nothing is copied."""
        kind, rows = _STORED[self.dtype][1], self.array[first : first + count]
        value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(rows, kind)
        binding.bind_ortvalue_input(self.past, value)
        binding.bind_ortvalue_output(self.present, value)

    def read(self, row: int, start: int, end: int) -> Array:
        """A copy of a sequence's slots [start, end): [kv_heads, end - start, D]."""
        return self.array[row, :, start:end].copy()

    def write(self, row: int, start: int, slots: Array) -> None:
        """What `read` gave, into a sequence's slots from `start` on."""
        self.array[row, :, start : start + slots.shape[1]] = slots

    def copy(self, row: int, to: int, slots: int) -> None:
        """The first `slots` of one sequence into another's."""
        self.array[to, :, :slots] = self.array[row, :, :slots]

    def cut(self, length: int) -> None:
        """Forget what is after `length` tokens: its rows are written again before they are read."""


class DeviceBuffer(KvBuffer):
    """A `KvBuffer` in a device's memory: a run copies nothing. Growing goes through the host."""

    def __init__(
        self,
        past: str,
        present: str,
        shape: tuple[int, ...],
        window: int | None,
        dtype: str,
        device: str,
    ) -> None:
        super().__init__(past, present, (*shape[:2], 0, shape[3]), window, dtype)
        self._device = device
        self.value = _on_device(np.zeros(shape, self.array.dtype), device)

    @property
    def capacity(self) -> int:
        return int(self.value.shape()[2])

    def grow(self, capacity: int, used: int) -> None:
        self.value = _on_device(_grown(self.value.numpy(), capacity, used), self._device)

    def bind(self, binding: onnxruntime.IOBinding, first: int, count: int) -> None:
        # By address, since the value holds bfloat16 as uint16.
        kind, shape = _STORED[self.dtype][1], list(self.value.shape())
        row = int(np.prod(shape[1:])) * self.array.dtype.itemsize
        address, shape[0] = self.value.data_ptr() + first * row, count
        binding.bind_input(self.past, self._device, 0, kind, shape, address)
        binding.bind_output(self.present, self._device, 0, kind, shape, address)

    def read(self, row: int, start: int, end: int) -> Array:
        slots: Array = self.value.numpy()[row, :, start:end]
        return slots.copy()

    def write(self, row: int, start: int, slots: Array) -> None:
        array = self.value.numpy()
        array[row, :, start : start + slots.shape[1]] = slots
        self.value.update_inplace(array)

    def copy(self, row: int, to: int, slots: int) -> None:
        self.write(to, 0, self.read(row, 0, slots))


class AppendedCache(KvBuffer):
    """A KV tensor [1, kv_heads, T, D] that a graph of standard operators writes anew, longer by
    the new slots, at every run: the present of one run is the past of the next."""

    def __init__(
        self, past: str, present: str, shape: tuple[int, ...], dtype: str, device: str
    ) -> None:
        super().__init__(past, present, (*shape[:2], 0, shape[3]), None, dtype)
        self._device = device
        # Empty, or cut, it lies on the host: the next run copies it to where it computes.
        self.value = _on_device(self.array, "cpu")

    def grow(self, capacity: int, used: int) -> None:
        pass

    def bind(self, binding: onnxruntime.IOBinding, first: int, count: int) -> None:
        binding.bind_ortvalue_input(self.past, self.value)
        binding.bind_output(self.present, self._device)

    def cut(self, length: int) -> None:
        if length < self.value.shape()[2]:
            array = np.ascontiguousarray(self.value.numpy()[:, :, :length])
            self.value = _on_device(array, "cpu")


def make_buffer(
    past: str,
    present: str,
    shape: tuple[int, ...],
    window: int | None,
    *,
    dtype: str,
    provider: str,
    in_place: bool,
) -> KvBuffer:
    """A KV tensor where `provider` computes; `in_place` as the package's KV layout says."""
    device = DEVICES.get(provider)
    if not in_place:
        if dtype == "bfloat16":
            raise UserError("a bfloat16 KV cache needs a graph that keeps it in place")
        return AppendedCache(past, present, shape, dtype, device or "cpu")
    if device is None:
        return KvBuffer(past, present, shape, window, dtype)
    return DeviceBuffer(past, present, shape, window, dtype, device)


def _grown(array: Array, capacity: int, used: int) -> Array:
    batch, heads, _, size = array.shape
    grown = np.zeros((batch, heads, capacity, size), array.dtype)
    grown[:, :, :used] = array[:, :, :used]
    return grown


def _on_device(array: Array, device: str) -> onnxruntime.OrtValue:
    """A copy of `array` in the device's memory."""
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
        list(array.shape), array.dtype.type, device, 0
    )
    if array.size:
        value.update_inplace(array)
    return value
