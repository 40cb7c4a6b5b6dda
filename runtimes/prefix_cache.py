"""What earlier sequences left, for any later one that begins with the same tokens.

A tree: an edge is a `Segment`, a run of tokens with the KV rows that they gave, and ends where a
sequence can be gone on from. A system prompt that many conversations share is there once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from gptoss_onnx.runtimes.row import Segment, common_prefix


@dataclass(eq=False)
class _Node:
    segment: Segment | None = None  # None at a root
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=list)
    used: int = 0

    @property
    def end(self) -> int:
        return self.segment.end if self.segment else 0


class PrefixCache:
    """KV rows of at most `most_bytes`; whoever was not used for longest goes first.

    A `key` says what the rows are of (package, adapter): equal tokens of different keys share
    nothing. One cache may serve several engines; its methods may be called from any thread.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.nbytes = 0
        self._roots: dict[Hashable, _Node] = {}
        self._clock = 0
        self._lock = threading.Lock()

    def find(
        self, key: Hashable, ids: Sequence[int], same_rows: Callable[[int, int], bool]
    ) -> tuple[list[Segment], int]:
        """The segments whose first tokens, as many as returned, `ids` begins with.

        The last may serve in part: where `same_rows(its end, that length)` says that windowed
        layers hold the same rows after both.
        """
        with self._lock:
            node, path = self._roots.get(key, _Node()), list[Segment]()
            while True:
                child, shared = self._best(node, ids)
                if child is None or child.segment is None or not shared:
                    break
                if shared < len(child.segment.tokens):
                    reached = child.segment.start + shared
                    if same_rows(child.end, reached):
                        self._touch(child)
                        return [*path, child.segment], reached
                    break
                path.append(child.segment)
                node = child
            self._touch(node)
            return path, node.end

    def add(self, key: Hashable, tokens: Sequence[int], save: Callable[[int], Segment]) -> None:
        """Keep what a row holds of `tokens`; `save(start)` copies it from there on."""
        with self._lock:
            node = self._roots.setdefault(key, _Node())
            while True:
                child, shared = self._best(node, tokens)
                if child is None or child.segment is None or shared < len(child.segment.tokens):
                    break
                node = child
            self._touch(node)
            if node.end == len(tokens):
                return
            segment = save(node.end)
            if segment.nbytes > self.most_bytes:
                return
            self._touch(child := _Node(segment, node))
            node.children.append(child)
            self.nbytes += segment.nbytes
            while self.nbytes > self.most_bytes and (least := self._least_useful(child)):
                self._remove(least)

    def drop(self, key: Hashable) -> None:
        """Forget all of a key's."""
        with self._lock:
            for node in _below(self._roots.pop(key, _Node())):
                self.nbytes -= node.segment.nbytes if node.segment else 0

    def _best(self, node: _Node, ids: Sequence[int]) -> tuple[_Node | None, int]:
        """The child that shares most tokens; a whole edge before a part of a longer one."""
        best, most = None, (False, 0)
        for child in node.children:
            assert child.segment is not None
            tokens = child.segment.tokens
            if ids[node.end : node.end + 1] == [tokens[0]]:
                shared = common_prefix(tokens, tuple(ids[node.end : node.end + len(tokens)]))
                if (found := (shared == len(tokens), shared)) > most:
                    best, most = child, found
        return best, most[1]

    def _touch(self, node: _Node) -> None:
        self._clock += 1
        upward: _Node | None = node
        while upward is not None:
            upward.used, upward = self._clock, upward.parent

    def _least_useful(self, newest: _Node) -> _Node | None:
        """The leaf that nobody asked for since longest; not the one that was just added."""
        nodes = (node for root in self._roots.values() for node in _below(root))
        leaves = (n for n in nodes if not n.children and n.segment and n is not newest)
        return min(leaves, key=lambda node: node.used, default=None)

    def _remove(self, node: _Node) -> None:
        assert node.parent is not None and node.segment is not None
        node.parent.children.remove(node)
        self.nbytes -= node.segment.nbytes


def _below(node: _Node) -> Iterator[_Node]:
    yield node
    for child in node.children:
        yield from _below(child)
