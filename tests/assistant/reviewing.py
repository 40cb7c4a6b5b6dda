"""Filters on texts, whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from gptoss_onnx.runtimes.content_filter import ContentFilter, Kind, Reviewer


def pieces_of(text: str, draw: Random) -> Iterable[str]:
    place = 0
    while place < len(text):
        size = draw.randint(1, 4)
        yield text[place : place + size]
        place += size


def fed(reviewer: Reviewer, pieces: Iterable[str]) -> tuple[str, str | None]:
    """What of a text is shown before it is blocked or ends, and the rule that blocks it."""
    text = ""
    shown = 0
    for piece in pieces:
        text += piece
        review = reviewer.feed(piece)
        if review.blocked is not None:
            return text[:shown], review.blocked
        assert shown <= review.cleared <= len(text), "what is shown stays so"
        shown = review.cleared
    review = reviewer.finish()
    if review.blocked is not None:
        return text[:shown], review.blocked
    assert review.cleared == len(text)
    return text, None


def reviewed(
    content_filter: ContentFilter, text: str, kind: Kind = "final", cut: int = 1
) -> tuple[str, str | None]:
    """`fed` with pieces of `cut` characters."""
    pieces = (text[place : place + cut] for place in range(0, len(text), cut))
    return fed(content_filter.begin(kind), pieces)
