"""Bounds for schemas of strangers: a long chain of references overflows llguidance's stack."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import unquote

from gptoss_onnx.runtimes.errors import UserError

LONGEST = 1 << 17  # characters: twice that compiles for half a second
# Each is a frame or more of llguidance's, which follows every reference once: 2,100 overflow the
# 8 MB that Linux gives a thread, and other systems give less.
MOST_LEVELS = 1_000
_STACK = 64 << 20
_starting = threading.Lock()
_Made = TypeVar("_Made")


def on_a_deep_stack(work: Callable[[], _Made]) -> _Made:
    """What `work` returns or raises, on a thread with room for it."""
    pool = ThreadPoolExecutor(1)
    with _starting:
        before = threading.stack_size(_STACK)
        try:
            made = pool.submit(work)
        finally:
            threading.stack_size(before)
    pool.shutdown(wait=False)
    return made.result()


def check_size(schema: Mapping[str, Any], length: int, what: str) -> None:
    """UserError for a schema, of `length` characters, that is not worth trying."""
    if length > LONGEST:
        raise UserError(f"{what} has {length} characters: make it {LONGEST} or fewer")
    levels, references = _levels(schema)
    levels += sum(_levels_of(schema, reference, levels) for reference in references)
    if levels > MOST_LEVELS:
        raise UserError(
            f"{what} is {levels} levels deep, references followed: make it {MOST_LEVELS} or fewer"
        )


def _levels(schema: Any) -> tuple[int, set[str]]:
    """How deeply `schema` is nested, and what it refers to."""
    deepest, references, left = 0, set(), [(schema, 1)]
    while left:
        value, depth = left.pop()
        inside = list(value.values()) if isinstance(value, Mapping) else value
        if isinstance(inside, list):
            deepest = max(deepest, depth)
            left += [(entry, depth + 1) for entry in inside]
        if isinstance(value, Mapping):
            named = value.get("$ref")  # the one kind that is followed
            references |= {named} if isinstance(named, str) else set()
    return deepest, references


def _levels_of(schema: Any, reference: str, at_most: int) -> int:
    """Of what `reference` points at; `at_most` where that is not told by a path."""
    if not reference.startswith("#/"):
        return at_most
    for part in unquote(reference[2:]).split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, Mapping) and key in schema:
            schema = schema[key]
        elif isinstance(schema, list) and key.isdecimal() and int(key[:9]) < len(schema):
            schema = schema[int(key[:9])]
        else:
            return at_most
    return _levels(schema)[0]
