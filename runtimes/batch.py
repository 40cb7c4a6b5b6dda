"""A graph with its KV cache for several sequences, each in a row of its own.

Rows are independent: any range of them is fed in one run, each its own next tokens at its own
length, so that some are prefilled in chunks while others decode together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.kv_cache import KV_DTYPES, AppendedCache, KvBuffer, make_buffer
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.row import Row
from gptoss_onnx.runtimes.token_ids import check_ids

FIRST_CAPACITY = 256  # tokens
# Rows of a windowed buffer beyond its window, as a part of the window. Attention reads every row of
# the buffer, while moving the window back to its start is paid once in slack + 1 tokens: at 20B's
# sizes a decode step took 155 us with none, 165 us with a quarter, 213 us with a whole window. A
# quarter costs next to nothing and lets a rewind go back up to 32 tokens without a snapshot.
WINDOW_SLACK = 0.25

Floats = NDArray[np.float32]
# NumPy's and the host's, and what ONNX Runtime raises where a device has no room.
_NO_MEMORY = (MemoryError, RuntimeError, RuntimeException, Fail)


def windowed_rows(window: int) -> int:
    """Rows of a windowed layer's buffer, and at most of its snapshot."""
    return int(window * (1 + WINDOW_SLACK))


@dataclass
class _Bound:
    """What runs over one range of rows are bound to, kept from run to run."""

    binding: onnxruntime.IOBinding
    ids: NDArray[np.int64]  # [rows, chunk]


class Batch:
    """KV buffers [rows, kv_heads, slots, D] and the sequences in them.

    `max_length` (tokens) allocates the KV cache once, for that many in every row; without it the
    cache starts small and doubles. Not thread-safe. UserError for several rows where the package's
    KV cache is not kept in place: such graphs hold one length for all.
    """

    def __init__(self, package: Package, rows: int = 1, *, max_length: int | None = None) -> None:
        manifest = package.manifest
        if max_length is not None and not 1 < max_length <= manifest.context_length:
            raise UserError(
                f"max_length is {max_length}: it must be from 2 to the package's context length, "
                f"{manifest.context_length}"
            )
        if manifest.kv.dtype not in KV_DTYPES:
            raise UserError(
                f"a KV cache of {manifest.kv.dtype} is not supported; {', '.join(KV_DTYPES)} are"
            )
        if rows > 1 and (why := one_at_a_time(package)):
            raise UserError(f"{package.folder}: {why}: use a session for each sequence")
        self.package = package
        self.max_length = max_length or manifest.context_length
        self._graph = package.graph
        self._capacity = min(max_length or FIRST_CAPACITY, self.max_length)
        try:
            self._buffers = self._make_buffers(rows)
        except _NO_MEMORY as error:
            raise self._no_room(rows, self._capacity) from error
        self.windowed = [buffer for buffer in self._buffers if buffer.window is not None]
        self.full = [buffer for buffer in self._buffers if buffer.window is None]
        self.appended = [b for b in self._buffers if isinstance(b, AppendedCache)]
        self.rows = [Row(self, place) for place in range(rows)]
        self._bound: dict[tuple[int, int], _Bound] = {}
        self._mask = np.zeros(rows * self._capacity, np.int64)
        self._logits: Floats = np.empty(rows * manifest.vocab_size, np.float32)

    def _make_buffers(self, rows: int) -> list[KvBuffer]:
        kv, provider = self.package.manifest.kv, self._graph.get_providers()[0]
        make = partial(make_buffer, dtype=kv.dtype, provider=provider, in_place=kv.in_place)
        buffers = []
        for index, layer in enumerate(kv.layers):
            window = layer.kept
            slots = windowed_rows(window) if window else self._capacity
            shape = (rows, kv.num_kv_heads, slots, kv.head_dim)
            for part in ("key", "value"):
                names = f"past_key_values.{index}.{part}", f"present.{index}.{part}"
                buffers.append(make(*names, shape, window))
        return buffers

    @property
    def capacity(self) -> int:
        """Tokens that each row's full layers have memory for."""
        return self._capacity

    def first_positions(self, length: int) -> list[int]:
        """Of each windowed buffer, the position its first slot holds after `length` tokens."""
        return [buffer.first_position(length) for buffer in self.windowed]

    def same_rows(self, length: int, shorter: int) -> bool:
        """Whether the windowed rows after `length` tokens begin with those after `shorter`."""
        return self.first_positions(length) == self.first_positions(shorter)

    def feed(
        self,
        rows: Sequence[Sequence[int]],
        *,
        first: int = 0,
        run_options: onnxruntime.RunOptions | None = None,
    ) -> Floats:
        """Feed the rows from `first` on their next tokens, right padded to the longest.

        Returns the logits [rows, V] after each one's last token: a view that the next call
        overwrites; garbage for a row that got no token. UserError beyond `max_length`, for an id
        outside the vocabulary, where no row has a token, and where the KV cache cannot grow for
        want of memory: nothing has changed then. When the run fails or is terminated, either no
        row has changed or each that was fed is back at the longest prefix it can be sure of.
        """
        chosen = self.rows[first : first + len(rows)]
        if len(rows) != len(chosen) or not rows:
            raise ValueError(f"{len(rows)} rows from {first} on, of {len(self.rows)}")
        for place, tokens in enumerate(rows, first):
            of_row = f" of row {place}" if len(self.rows) > 1 else ""
            check_ids(tokens, self.package.manifest.vocab_size, f"the tokens{of_row}")
        size = max(map(len, rows))
        if not size:
            raise UserError("no token is fed: feed at least one")
        # The kernel wants a past of one at least in a row that gets no token.
        idle = any(not tokens and not row.length for row, tokens in zip(chosen, rows, strict=True))
        end = max(int(idle), *(row.length for row in chosen)) + size
        self.reserve(end)
        bound = self._bind(first, len(rows), size)
        for place, tokens in enumerate(rows):
            bound.ids[place, : len(tokens)] = tokens
        self._bind_mask(bound, chosen, rows, end)
        try:
            self._graph.run_with_iobinding(bound.binding, run_options)
        except BaseException:
            self._after_failure(chosen, rows)
            raise
        if self.appended:  # outputs come in the order they were first bound, the cache's first
            for buffer, present in zip(self.appended, bound.binding.get_outputs(), strict=False):
                buffer.value = present
        for row, tokens in zip(chosen, rows, strict=True):
            row._fed(tokens)
        logits = self._logits_of(len(rows), size)
        if logits.shape[1] == 1:
            return logits[:, 0]
        last = [max(len(tokens) - 1, 0) for tokens in rows]
        return logits[np.arange(len(rows)), last]

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens a row; UserError where there is none."""
        if length > self.max_length:
            raise UserError(
                f"{length} tokens are more than the {self.max_length} this session has room for; "
                "start a new one, or shorten the conversation"
            )
        if length > self._capacity:
            try:
                self._grow(min(max(2 * self._capacity, length), self.max_length))
            except _NO_MEMORY as error:
                raise self._no_room(len(self.rows), length) from error

    def shrink(self) -> None:
        """Give back what long sequences took; every row is cleared."""
        capacity = min(FIRST_CAPACITY, self.max_length)
        for row in self.rows:
            row.clear()
        self._bound.clear()
        for buffer in self.full:
            buffer.grow(capacity, 0)
        self._capacity = capacity

    def _no_room(self, rows: int, tokens: int) -> UserError:
        return UserError(
            f"{self.package.folder}: the KV cache of {rows} x {tokens} tokens does not fit "
            "into memory"
        )

    def _grow(self, capacity: int) -> None:
        used = max(row.length for row in self.rows)
        # Unbound first, so that only one old buffer is alive beside its successor.
        self._bound.clear()
        for buffer in self.full:
            buffer.grow(capacity, used)
        self._capacity = capacity  # last: where memory ends half-way, the next feed grows again

    def _bind(self, first: int, count: int, size: int) -> _Bound:
        """The range's binding, with input ids [rows, size] and logits of that size."""
        bound = self._bound.get((first, count))
        fresh = bound is None
        if bound is None:
            bound = _Bound(self._graph.io_binding(), np.zeros((count, 0), np.int64))
        if fresh or self.appended:
            for buffer in self._buffers:
                buffer.bind(bound.binding, first, count)
        if bound.ids.shape[1] != size:
            bound.ids = np.zeros((count, size), np.int64)
            value = onnxruntime.OrtValue.ortvalue_from_numpy
            bound.binding.bind_ortvalue_input("input_ids", value(bound.ids))
            logits = self._logits_of(count, size)
            bound.binding.bind_ortvalue_output("logits", value(logits))
        self._bound[first, count] = bound
        return bound

    def _logits_of(self, count: int, size: int) -> Floats:
        """Memory that all ranges share, as [rows, tokens or 1, V]."""
        manifest = self.package.manifest
        shape = (count, size if manifest.logits == "all" else 1, manifest.vocab_size)
        needed = int(np.prod(shape))
        if needed > self._logits.size:
            self._logits = np.empty(needed, np.float32)
            for other in self._bound.values():  # bound to the old one: bind again at the next run
                other.ids = np.zeros((len(other.ids), 0), np.int64)
        return self._logits[:needed].reshape(shape)

    def _bind_mask(
        self, bound: _Bound, chosen: Sequence[Row], rows: Sequence[Sequence[int]], end: int
    ) -> None:
        """[rows, end]: ones for a row's past from the left, and for its tokens in the chunk."""
        size = bound.ids.shape[1]
        if len(chosen) * end > self._mask.size:
            self._mask = np.zeros(len(self.rows) * self._capacity, np.int64)
        mask = self._mask[: len(chosen) * end].reshape(len(chosen), end)
        mask[:] = 0
        for line, row, tokens in zip(mask, chosen, rows, strict=True):
            past = row.length if row.length or tokens else 1
            line[:past] = 1
            line[end - size : end - size + len(tokens)] = 1
        value = onnxruntime.OrtValue.ortvalue_from_numpy(mask)
        bound.binding.bind_ortvalue_input("attention_mask", value)

    def _after_failure(self, chosen: Sequence[Row], rows: Sequence[Sequence[int]]) -> None:
        """Nothing was lost unless a windowed layer may have moved its rows for the failed chunk."""
        fed = [(row, len(tokens)) for row, tokens in zip(chosen, rows, strict=True) if tokens]
        if not all(self.same_rows(row.length + count, row.length) for row, count in fed):
            for row, _ in fed:
                row.restore(row.length)


def one_at_a_time(package: Package) -> str | None:
    """Why a package's sequences cannot share runs; None where they can."""
    manifest = package.manifest
    if not manifest.kv.in_place:
        return f"a package for {manifest.target} makes its KV cache anew at every run"
    if not manifest.padded_batches:
        return (
            f"a package for {manifest.target} takes the same number of tokens for every row of a "
            "batch"
        )
    return None
