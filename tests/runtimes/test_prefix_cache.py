"""The tree of what sequences left: found as far as it is the same, bounded, least useful out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptoss_onnx.runtimes.prefix_cache import PrefixCache
from gptoss_onnx.runtimes.row import Segment

BYTES = 40  # a token takes 32 in `rows`, and 8 itself


def segment(tokens: Sequence[int], start: int) -> Segment:
    """Rows of the tokens' own numbers: [1, L, 8] float32."""
    rows = np.repeat(np.asarray(tokens[start:], np.float32)[None, :, None], 8, axis=2)
    return Segment(start, tuple(tokens[start:]), [rows], [])


def add(cache: PrefixCache, tokens: Sequence[int], key: str = "a") -> None:
    cache.add(key, tokens, lambda start: segment(tokens, start))


def find(
    cache: PrefixCache, ids: list[int], key: str = "a", back: int = 0
) -> tuple[list[list[int]], int]:
    """`back`: tokens that a sequence can go back at most."""
    segments, length = cache.find(key, ids, lambda end, shorter: end - shorter <= back)
    return [list(found.full[0][0, :, 0].astype(int)) for found in segments], length


def test_a_beginning_is_shared() -> None:
    cache = PrefixCache(10_000)
    add(cache, [1, 2, 3])
    add(cache, [1, 2, 3, 4, 5])
    add(cache, [1, 2, 3, 6])
    assert cache.nbytes == 6 * BYTES
    assert find(cache, [1, 2, 3, 4, 5, 9]) == ([[1, 2, 3], [4, 5]], 5)
    assert find(cache, [1, 2, 3, 6]) == ([[1, 2, 3], [6]], 4)
    assert find(cache, [1, 2, 3, 7]) == ([[1, 2, 3]], 3)
    assert find(cache, [1, 2]) == ([], 0)
    assert find(cache, [2]) == ([], 0)
    assert find(cache, []) == ([], 0)


def test_an_edge_serves_in_part_where_windows_are_the_same() -> None:
    cache = PrefixCache(10_000)
    add(cache, [1, 2])
    add(cache, [1, 2, 3, 4, 5, 6])
    assert find(cache, [1, 2, 3, 4, 9], back=2) == ([[1, 2], [3, 4, 5, 6]], 4)
    assert find(cache, [1, 2, 3, 9], back=2) == ([[1, 2]], 2)
    assert find(cache, [1], back=1) == ([[1, 2]], 1)


def test_an_edge_of_its_own_beside_a_longer_one() -> None:
    cache = PrefixCache(10_000)
    add(cache, [1, 2, 3, 4])
    add(cache, [1, 2])  # no rows of windowed layers were kept after these two
    assert find(cache, [1, 2, 9]) == ([[1, 2]], 2)
    assert find(cache, [1, 2, 3, 4, 5]) == ([[1, 2, 3, 4]], 4)


def test_what_is_there_is_not_copied_again() -> None:
    cache = PrefixCache(10_000)
    add(cache, [1, 2, 3])

    def refuse(start: int) -> Segment:
        raise AssertionError(start)

    cache.add("a", [1, 2, 3], refuse)
    assert cache.nbytes == 3 * BYTES


def test_keys_share_nothing() -> None:
    cache = PrefixCache(10_000)
    add(cache, [1, 2, 3], "a")
    assert find(cache, [1, 2, 3], "b") == ([], 0)
    add(cache, [1, 2], "b")
    cache.drop("a")
    assert find(cache, [1, 2, 3], "a") == ([], 0)
    assert find(cache, [1, 2, 3], "b") == ([[1, 2]], 2)
    assert cache.nbytes == 2 * BYTES
    cache.drop("none")


def test_the_bound_is_kept_and_who_was_asked_for_stays() -> None:
    cache = PrefixCache(8 * BYTES)
    add(cache, [1, 2])
    for first in range(10, 50, 10):
        add(cache, [1, 2, first, first + 1])
        find(cache, [1, 2, 10, 11])  # asked for in every turn
        assert cache.nbytes <= 8 * BYTES
    assert find(cache, [1, 2, 10, 11])[1] == 4
    assert find(cache, [1, 2, 20, 21])[1] == 2, "the least recently asked for went"
    assert find(cache, [1, 2, 40, 41])[1] == 4


def test_a_beginning_stays_as_long_as_anybody_builds_on_it() -> None:
    cache = PrefixCache(4 * BYTES)
    add(cache, [1, 2])
    add(cache, [1, 2, 3, 4])
    add(cache, [7, 8])  # instead of 3, 4 and not of 1, 2
    assert find(cache, [1, 2, 3, 4])[1] == 2
    assert find(cache, [7, 8])[1] == 2


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    cache = PrefixCache(2 * BYTES)
    add(cache, [1, 2])
    add(cache, [3, 4, 5])
    assert cache.nbytes == 2 * BYTES
    assert find(cache, [1, 2])[1] == 2
    nothing = PrefixCache(0)
    add(nothing, [1])
    assert (nothing.nbytes, find(nothing, [1])[1]) == (0, 0)
