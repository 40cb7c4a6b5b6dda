"""A graph with its KV cache: feeds tokens, grows the cache in place, goes back to a prefix."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.kv_cache import KV_DTYPES, AppendedCache, Array, KvBuffer, make_buffer
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.token_ids import check_ids

FIRST_CAPACITY = 256  # tokens
# Rows of a windowed buffer beyond its window, as a part of the window. Attention reads every row of
# the buffer, while moving the window back to its start is paid once in slack + 1 tokens: at 20B's
# sizes a decode step took 155 us with none, 165 us with a quarter, 213 us with a whole window. A
# quarter costs next to nothing and lets a rewind go back up to 32 tokens without a snapshot.
WINDOW_SLACK = 0.25
SNAPSHOTS = 4  # of 8 MB each at 20B's sizes

Floats = NDArray[np.float32]
# NumPy's and the host's, and what ONNX Runtime raises where a device has no room.
_NO_MEMORY = (MemoryError, RuntimeError, RuntimeException, Fail)


def windowed_rows(window: int) -> int:
    """Rows of a windowed layer's buffer, and at most of its snapshot."""
    return int(window * (1 + WINDOW_SLACK))


@dataclass(frozen=True)
class _Snapshot:
    """The windowed layers' rows after `length` tokens: one array [kv_heads, L, D] a buffer."""

    length: int
    rows: list[Array]


class Session:
    """The running state of `batch` sequences that are fed together.

    A batch starts empty and only moves forward; a single sequence can also be rewound and reuse
    what it has in common with the next prompt. `max_length` (tokens) allocates the KV cache once,
    for that many; without it the cache starts small and doubles. Not thread-safe: hold `lock`
    while you use it.
    """

    def __init__(self, package: Package, *, batch: int = 1, max_length: int | None = None) -> None:
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
        self.package = package
        self.batch = batch
        self.max_length = max_length or manifest.context_length
        self.lock = threading.Lock()
        self._graph = package.graph
        self._binding = self._graph.io_binding()
        self._capacity = min(max_length or FIRST_CAPACITY, self.max_length)
        try:
            self._buffers = self._make_buffers()
        except _NO_MEMORY as error:
            raise self._no_room(self._capacity) from error
        self._windowed = [buffer for buffer in self._buffers if buffer.window is not None]
        self._appended = [b for b in self._buffers if isinstance(b, AppendedCache)]
        for buffer in self._buffers:
            buffer.bind(self._binding)
        self._mask = np.zeros((batch, self._capacity), np.int64)
        self._mask_row = np.zeros(batch * self._capacity, np.int64)
        self._logits: Floats = np.empty((0, 0, 0), np.float32)
        self._bind_chunk(1)
        self.reset()

    def _make_buffers(self) -> list[KvBuffer]:
        kv, provider = self.package.manifest.kv, self._graph.get_providers()[0]
        make = partial(make_buffer, dtype=kv.dtype, provider=provider, in_place=kv.in_place)
        buffers = []
        for index, layer in enumerate(kv.layers):
            window = layer.kept
            rows = windowed_rows(window) if window else self._capacity
            shape = (self.batch, kv.num_kv_heads, rows, kv.head_dim)
            for part in ("key", "value"):
                names = f"past_key_values.{index}.{part}", f"present.{index}.{part}"
                buffers.append(make(*names, shape, window))
        return buffers

    def reset(self) -> None:
        """Forget everything; the buffers stay."""
        self._slots = 0  # columns of the attention mask in use
        self._lengths = [0] * self.batch  # tokens of each row, holes not counted
        for buffer in self._appended:
            buffer.cut(0)
        self._tokens: list[int] = []  # of a single sequence
        self._snapshots: list[_Snapshot] = []  # by length

    @property
    def length(self) -> int:
        """Tokens fed so far; of the longest sequence, holes included, in a batch."""
        return self._slots

    @property
    def tokens(self) -> Sequence[int]:
        """The single sequence's tokens that the KV cache holds."""
        return self._tokens

    @property
    def evicted(self) -> int:
        """Tokens at the single sequence's start that windowed layers no longer have rows of."""
        return self._first_positions(self._lengths[0])[0] if self._windowed else 0

    def _first_positions(self, length: int) -> list[int]:
        """Of each windowed buffer, after `length` tokens of a row."""
        return [buffer.first_position(length) for buffer in self._windowed]

    def feed(
        self,
        rows: Sequence[Sequence[int]],
        run_options: onnxruntime.RunOptions | None = None,
    ) -> Floats:
        """Feed each sequence its next tokens, right padded to the longest row.

        Returns the logits [B, V] after each sequence's last token: a view that the next call
        overwrites; garbage for a row that got no token. UserError beyond `max_length`, for an id
        outside the vocabulary, where no row has a token, and where the KV cache cannot grow for
        want of memory: nothing has changed then. When the run
        fails or is terminated, what is left is the longest intact prefix (`length`); of a batch
        everything or nothing.
        """
        if len(rows) != self.batch:
            raise ValueError(f"{len(rows)} rows for a session of {self.batch}")
        for row, tokens in enumerate(rows):
            of_row = f" of row {row}" if self.batch > 1 else ""
            check_ids(tokens, self.package.manifest.vocab_size, f"the tokens{of_row}")
        size = max(map(len, rows))
        if not size:
            raise UserError("no token is fed: feed at least one")
        if not self.package.manifest.padded_batches and min(map(len, rows)) < size:
            raise UserError(
                f"{self.package.folder}: a package for {self.package.manifest.target} takes the "
                "same number of tokens for every row of a batch: use a session for each sequence"
            )
        end = self._slots + size
        if end > self.max_length:
            raise UserError(
                f"{end} tokens are more than the {self.max_length} this session has room for; "
                "start a new one, or shorten the conversation"
            )
        if end > self._capacity:
            try:
                self._grow(end)
            except _NO_MEMORY as error:
                raise self._no_room(end) from error
        if self._ids.shape[1] != size:
            self._bind_chunk(size)
        for row, tokens in enumerate(rows):
            self._ids[row, : len(tokens)] = tokens
            self._mask[row, self._slots : end] = np.arange(size) < len(tokens)
        self._bind_mask(end)
        for buffer in self._appended:
            buffer.bind(self._binding)
        lengths = [length + len(row) for length, row in zip(self._lengths, rows, strict=True)]
        try:
            self._graph.run_with_iobinding(self._binding, run_options)
        except BaseException:
            self._after_failure(lengths)
            raise
        self._slots, self._lengths = end, lengths
        if self._appended:  # outputs come in the order they were first bound, the cache's first
            for buffer, present in zip(self._appended, self._binding.get_outputs(), strict=False):
                buffer.value = present
        if self.batch == 1:
            self._tokens.extend(map(int, rows[0]))
        if self._logits.shape[1] == 1:
            return self._logits[:, 0]
        last = [max(len(tokens) - 1, 0) for tokens in rows]
        return self._logits[np.arange(self.batch), last]

    def _no_room(self, tokens: int) -> UserError:
        return UserError(
            f"{self.package.folder}: the KV cache of {self.batch} x {tokens} tokens does not fit "
            "into memory"
        )

    def _grow(self, needed: int) -> None:
        capacity = min(max(2 * self._capacity, needed), self.max_length)
        for buffer in self._buffers:
            if buffer.window is None:
                buffer.grow(capacity, self._slots)
                # Bound one by one, so that only one old buffer is alive beside its successor.
                buffer.bind(self._binding)
        mask = np.zeros((self.batch, capacity), np.int64)
        mask[:, : self._slots] = self._mask[:, : self._slots]
        self._mask = mask
        self._mask_row = np.zeros(mask.size, np.int64)
        self._capacity = capacity  # last: where memory ends half-way, the next feed grows again

    def _bind_chunk(self, size: int) -> None:
        """Input ids [B, size] and the logits, kept as long as chunks have this size."""
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._ids = np.zeros((self.batch, size), np.int64)
        self._binding.bind_ortvalue_input("input_ids", value(self._ids))
        manifest = self.package.manifest
        shape = (self.batch, size if manifest.logits == "all" else 1, manifest.vocab_size)
        if self._logits.shape != shape:
            self._logits = np.empty(shape, np.float32)
            self._binding.bind_ortvalue_output("logits", value(self._logits))

    def _bind_mask(self, end: int) -> None:
        """The mask's first `end` columns. Rows of a batch are packed: their stride is `end`."""
        mask = self._mask[:, :end]
        if self.batch > 1:
            packed = self._mask_row[: mask.size].reshape(mask.shape)
            packed[:] = mask
            mask = packed
        value = onnxruntime.OrtValue.ortvalue_from_numpy(mask)
        self._binding.bind_ortvalue_input("attention_mask", value)

    def _after_failure(self, lengths: Sequence[int]) -> None:
        """Nothing was lost unless a windowed layer may have moved its rows for the failed chunk.

        A row moves by its own length, so where the rows of a batch differ any of them may have.
        """
        if not all(map(self._same_rows, lengths, self._lengths)):
            self._restore_snapshot(self._slots)

    def snapshot(self) -> None:
        """Make the present length one that `rewind` can come back to exactly.

        Copies the windowed layers' rows. A few snapshots are kept: the newest, and of the others
        those that spare most tokens from being fed again.
        """
        if self.batch != 1:
            raise ValueError("a batch has no snapshots")
        if self._windowed:
            rows = [
                buffer.saved(self._slots - buffer.first_position(self._slots))
                for buffer in self._windowed
            ]
            self._snapshots.append(_Snapshot(self._slots, rows))
            if len(self._snapshots) > SNAPSHOTS:
                lengths = [0, *(s.length for s in self._snapshots)]
                gaps = np.diff(lengths[:-1])  # the newest stays
                del self._snapshots[int(gaps.argmin())]

    def rewind(self, length: int) -> int:
        """Go back to `length` tokens, or as near below it as can be restored exactly.

        Full layers only need the count. A windowed layer's rows are right when none was evicted
        since, else they come from a snapshot; with neither, nothing is left and 0 is returned.
        """
        if self.batch != 1:
            raise ValueError("a batch cannot be rewound")
        if not 0 <= length <= self._slots:
            raise ValueError(f"cannot rewind to {length} of {self._slots} tokens")
        if not self._same_rows(self._slots, length):
            self._restore_snapshot(length)
        else:
            self._cut(length)
        return self._slots

    def _same_rows(self, length: int, shorter: int) -> bool:
        """Whether the windowed rows after `length` tokens begin with those after `shorter`."""
        return self._first_positions(length) == self._first_positions(shorter)

    def _restore_snapshot(self, length: int) -> None:
        """Restore the longest prefix of at most `length` tokens that a snapshot holds, or none.

        A batch has no snapshots, so nothing is left of it.
        """
        best, reached = None, 0
        for snapshot in self._snapshots:
            # A later snapshot serves too when nothing was evicted between the two.
            within = snapshot.length <= length or self._same_rows(snapshot.length, length)
            if within and min(snapshot.length, length) > reached:
                best, reached = snapshot, min(snapshot.length, length)
        if best:
            for buffer, rows in zip(self._windowed, best.rows, strict=True):
                buffer.restore(rows)
        self._cut(reached)

    def _cut(self, length: int) -> None:
        self._slots, self._lengths = length, [length] * self.batch
        for buffer in self._appended:
            buffer.cut(length)
        del self._tokens[length:]
        self._snapshots = [s for s in self._snapshots if s.length <= length]

    def reuse(self, ids: Sequence[int]) -> int:
        """Keep what the cache has in common with the prompt `ids`; how many tokens need no feeding.

        At least one token is left to feed: the logits after it are what a reply starts from.
        """
        common = 0
        for cached, new in zip(self._tokens, ids[:-1], strict=False):
            if cached != new:
                break
            common += 1
        return self.rewind(common)
