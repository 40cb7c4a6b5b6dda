"""Which tokens a text came with, however much of it is told at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_onnx.runtimes.request import Token


class TokenTexts:
    """Texts in the order in which they are told, each with the tokens that completed it."""

    def __init__(self) -> None:
        self._untold: deque[tuple[int, Sequence[Token]]] = deque()
        self._told = 0  # characters of the first

    def add(self, text: str, tokens: Sequence[Token]) -> None:
        self._untold.append((len(text), tokens))

    def take(self, size: int) -> list[Token]:
        """Those whose text is over with the next `size` characters."""
        size += self._told
        found: list[Token] = []
        while self._untold and size >= self._untold[0][0]:
            length, tokens = self._untold.popleft()
            size -= length
            found += tokens
        self._told = size
        return found
