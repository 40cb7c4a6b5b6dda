"""One sequence in a row of a batch's KV buffers: its tokens, and the prefixes it can go back to."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from gptoss_onnx.runtimes.kv_cache import Array, KvBuffer

if TYPE_CHECKING:
    from gptoss_onnx.runtimes.batch import Batch, Floats

SNAPSHOTS = 4  # of 8 MB each at 20B's sizes


@dataclass(frozen=True)
class Segment:
    """What a row holds of tokens [start, end): enough for another row to go on behind them.

    `full` are the full layers' rows of these tokens, `windowed` those that the windowed layers have
    after `end`: one array [kv_heads, L, D] a buffer.
    """

    start: int
    tokens: tuple[int, ...]
    full: list[Array]
    windowed: list[Array]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.full, *self.windowed)) + 8 * len(self.tokens)


class Row:
    """A sequence that only moves forward, and can be rewound to a prefix of its own."""

    def __init__(self, batch: Batch, place: int) -> None:
        self.batch = batch
        self.place = place
        self.clear()

    def clear(self) -> None:
        """Forget everything; the buffers stay."""
        self.key: Hashable = None  # what its KV rows are of: an adapter
        self._tokens: list[int] = []
        # By length, without full rows: those stay where they are.
        self._snapshots: list[Segment] = []

    @property
    def length(self) -> int:
        """Tokens fed so far."""
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens that the KV cache holds."""
        return self._tokens

    @property
    def evicted(self) -> int:
        """Tokens at the start that windowed layers no longer have rows of."""
        positions = self.batch.first_positions(self.length)
        return positions[0] if positions else 0

    def feed(
        self, tokens: Sequence[int], run_options: onnxruntime.RunOptions | None = None
    ) -> Floats:
        """Feed the next tokens; the logits [V] after the last: a view the next call overwrites.

        Errors as `Batch.feed`; after a failure `length` tells what is left.
        """
        logits: Floats = self.batch.feed([tokens], first=self.place, run_options=run_options)[0]
        return logits

    def snapshot(self) -> None:
        """Make the present length one that `rewind` can come back to exactly.

        Copies the windowed layers' rows. A few snapshots are kept: the newest, and of the others
        those that spare most tokens from being fed again.
        """
        if not self.batch.windowed:
            return
        self._snapshots.append(Segment(self.length, (), [], self._windowed_rows()))
        if len(self._snapshots) > SNAPSHOTS:
            lengths = [0, *(s.start for s in self._snapshots)]
            gaps = np.diff(lengths[:-1])  # the newest stays
            del self._snapshots[int(gaps.argmin())]

    def rewind(self, length: int) -> int:
        """Go back to `length` tokens, or as near below it as can be restored exactly.

        Full layers only need the count. A windowed layer's rows are right when none was evicted
        since, else they come from a snapshot; with neither, nothing is left and 0 is returned.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length} of {self.length} tokens")
        if self.batch.same_rows(self.length, length):
            self._cut(length)
        else:
            self.restore(length)
        return self.length

    def restore(self, length: int) -> None:
        """Restore the longest prefix of at most `length` tokens that a snapshot holds, or none."""
        best, reached = None, 0
        for snapshot in self._snapshots:
            # A later snapshot serves too when nothing was evicted between the two.
            within = snapshot.start <= length or self.batch.same_rows(snapshot.start, length)
            if within and min(snapshot.start, length) > reached:
                best, reached = snapshot, min(snapshot.start, length)
        if best:
            for buffer, rows in zip(self.batch.windowed, best.windowed, strict=True):
                buffer.write(self.place, 0, rows)
        self._cut(reached)

    def reuse(self, ids: Sequence[int]) -> int:
        """Keep what the cache has in common with the prompt `ids`; how many tokens need no feeding.

        At least one token is left to feed: the logits after it are what a reply starts from.
        """
        return self.rewind(common_prefix(self._tokens, ids[:-1]))

    def saved(self, start: int) -> Segment:
        """A copy of what the row holds from token `start` on."""
        full = [buffer.read(self.place, start, self.length) for buffer in self.batch.full]
        return Segment(start, tuple(self._tokens[start:]), full, self._windowed_rows())

    def load(self, segments: Sequence[Segment], length: int) -> None:
        """Begin with the first `length` tokens of consecutive segments, the last maybe in part."""
        self.clear()
        self.batch.reserve(length)
        for segment in segments:
            count = min(segment.end, length) - segment.start
            self._tokens += segment.tokens[:count]
            for buffer, rows in zip(self.batch.full, segment.full, strict=True):
                buffer.write(self.place, segment.start, rows[:, :count])
        for buffer, rows in zip(self.batch.windowed, segments[-1].windowed, strict=True):
            buffer.write(self.place, 0, rows)

    def take(self, other: Row) -> None:
        """Become `other`, which is left empty."""
        for buffer in self.batch.full:
            buffer.copy(other.place, self.place, other.length)
        for buffer in self.batch.windowed:
            buffer.copy(other.place, self.place, self._held(buffer, other.length))
        self.key, self._tokens, self._snapshots = other.key, other._tokens, other._snapshots
        other.clear()

    def _windowed_rows(self) -> list[Array]:
        held = ((buffer, self._held(buffer, self.length)) for buffer in self.batch.windowed)
        return [buffer.read(self.place, 0, rows) for buffer, rows in held]

    @staticmethod
    def _held(buffer: KvBuffer, length: int) -> int:
        return length - buffer.first_position(length)

    def _cut(self, length: int) -> None:
        for buffer in self.batch.appended:
            buffer.cut(length)
        del self._tokens[length:]
        self._snapshots = [s for s in self._snapshots if s.start <= length]

    def _fed(self, tokens: Sequence[int]) -> None:
        self._tokens.extend(map(int, tokens))


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(i for i in range(most) if first[i] != second[i])
