"""Byte pair encoding over a tokenizer.json of real size, which the library takes 0.7 s to read.

The 446,000 merges of o200k are cut out of the file's bytes and kept as they stand there, each a key
of one table, so that loading makes no string of them. A merge is checked when it applies.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable
from typing import Any

from gptoss_onnx.runtimes.errors import UserError

_STRING = rb'"((?:[^"\\]|\\.)*)"'
# The first merge and the beginning of the second. With white space between its quotes nothing that
# stands between two strings can be part of one: no token of a byte-level vocabulary has any.
_FIRST = re.compile(
    rb"\s*\[\s*\[\s*" + _STRING + rb"(\s*,\s+)" + _STRING + rb'(\s*\]\s*,\s*\[\s*)"'
)
_LAST = re.compile(rb'"\s*\]\s*(\]\s*\}\s*\}\s*)\Z')
_ESCAPE = re.compile(rb"\\[u/]")
_REMEMBERED = 1 << 16  # words


def cut_merges(data: bytes) -> tuple[dict[str, Any], Merges] | None:
    """A tokenizer.json without its merges, and those; None where it is written unusually."""
    at = data.rfind(b'"merges":')
    end = _LAST.search(data, max(at, len(data) - 1000))
    start = _FIRST.match(data, at + len(b'"merges":')) if at >= 0 else None
    if start is None or end is None or len(start[4].split()) < 2:
        return None
    rest = data[:at] + b'"merges": [' + end[1]
    # Merges are of the vocabulary's strings, written as there.
    if _escapes(rest):
        return None
    try:
        content = json.loads(rest)
    except ValueError:
        return None
    within, between = b'"' + start[2] + b'"', b'"' + start[4] + b'"'
    first, last = start.start(1), end.start()
    pairs = data.split(between)  # what precedes the merges is no copy of its own
    pairs[0] = pairs[0][first:]
    pairs[-1] = pairs[-1][: last - len(data)]
    if data.count(within, first, last) != len(pairs):
        return None
    return content, Merges(dict(zip(pairs, range(len(pairs)), strict=True)), within)


def _escapes(vocabulary: bytes) -> bool:
    r"""Whether a character is escaped that need not be: the library writes \\ and \" alone."""
    for found in _ESCAPE.finditer(vocabulary):
        before = found.start() - 1
        while vocabulary[before] == 0x5C:
            before -= 1
        if (found.start() - before) % 2:  # else the backslash is itself escaped
            return True
    return False


class Merges:
    """Ranks of pairs, as JSON has their strings: `within` is what stands between the two."""

    def __init__(self, ranks: dict[bytes, int], within: bytes) -> None:
        self.ranks, self.within = ranks, within


class Bpe:
    """Ids of words in the byte-level alphabet."""

    def __init__(self, ids: dict[str, int], merges: Merges) -> None:
        self._ids, self._rank, self._within = ids, merges.ranks.get, merges.within
        self._known: dict[str, list[int]] = {}

    def encode(self, word: str) -> list[int]:
        """Ids of one word, whose characters all have a token."""
        found = self._known.get(word)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[word] = [self._id(part) for part in self._merge(word)]
        return found

    def _id(self, part: bytes) -> int:
        token = json.loads(b'"' + part + b'"') if b"\\" in part else part.decode()
        if token not in self._ids:
            raise UserError(f"tokenizer.json: model.merges make {token}, which is no token")
        return self._ids[token]

    def _merge(self, word: str) -> list[bytes]:
        """The earliest merge first, of equal ones the leftmost; in n log n."""
        rank, within = self._rank, self._within
        parts = [_JSON[char] for char in word]
        count = len(parts)
        after, before = list(range(1, count + 1)), list(range(-1, count - 1))
        heap: list[tuple[int, int]] = []

        def offer(
            place: int, put: Callable[[list[tuple[int, int]], tuple[int, int]], None]
        ) -> None:
            if place >= 0 and after[place] < count:
                found = rank(parts[place] + within + parts[after[place]])
                if found is not None:
                    put(heap, (found, place))

        for place in range(count):
            offer(place, list.append)
        heapq.heapify(heap)
        while heap:
            found, place = heapq.heappop(heap)
            left, second = parts[place], after[place]
            # A pair that has merged with a neighbour since is another pair.
            if not left or second >= count:
                continue
            right = parts[second]
            if rank(left + within + right) != found:
                continue
            parts[place], parts[second] = left + right, b""
            after[place] = after[second]
            if after[second] < count:
                before[after[second]] = place
            offer(place, heapq.heappush)
            offer(before[place], heapq.heappush)
        return [part for part in parts if part]


# What JSON has for a character of the alphabet.
_JSON = {chr(c): json.dumps(chr(c), ensure_ascii=False)[1:-1].encode() for c in range(0x21, 0x144)}
