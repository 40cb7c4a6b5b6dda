"""A content filter in a few lines: it forbids one word, and keeps what it was asked."""

from __future__ import annotations

from gptoss_onnx.runtimes.content_filter import Kind, Review


class WordFilter:
    """Forbids `word` wherever it stands."""

    slow = False

    def __init__(self, word: str = "bomb") -> None:
        self.word = word
        self.texts: list[tuple[Kind, list[str]]] = []  # each with the pieces that it came in

    def begin(self, kind: Kind) -> WordReviewer:
        pieces: list[str] = []
        self.texts.append((kind, pieces))
        return WordReviewer(self.word, pieces)


class WordReviewer:
    def __init__(self, word: str, pieces: list[str]) -> None:
        self.word = word
        self.pieces = pieces

    def feed(self, text: str) -> Review:
        self.pieces.append(text)
        said = "".join(self.pieces)
        if self.word in said:
            return Review(blocked=f"no {self.word}")
        held = next(n for n in range(len(self.word), -1, -1) if said.endswith(self.word[:n]))
        return Review(len(said) - held)

    def finish(self) -> Review:
        return Review(len("".join(self.pieces)))
