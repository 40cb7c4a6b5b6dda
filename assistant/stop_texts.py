"""Texts that end an answer: what may be the beginning of one is held back until that is clear."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes text on up to the first of `stops`; nothing of a stop is ever passed on."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """What can be said now; `hit` tells that a stop came, and nothing follows it."""
        if self.hit:
            return ""
        text = self._held + text
        found = first_stop(text, self._stops)
        if found is not None:
            self.hit, self._held = True, ""
            return text[:found]
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and is no stop after all; a new message begins with nothing held."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Characters at the end of `text` that a stop may begin with."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of `stops` begins in `text`."""
    return min((place for place in map(text.find, stops) if place >= 0), default=None)
