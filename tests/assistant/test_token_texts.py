"""Tokens come with the last of their text, never before."""

from __future__ import annotations

from random import Random

from gptoss_onnx.assistant.token_texts import TokenTexts
from gptoss_onnx.runtimes.request import Token


def test_tokens_are_told_with_the_end_of_their_text() -> None:
    texts = TokenTexts()
    texts.add("abc", [Token(1), Token(2)])
    texts.add("de", [Token(3)])
    told = [[token.id for token in texts.take(size)] for size in (2, 0, 1, 1)]
    assert told == [[], [], [1, 2], []]
    texts.add("f", [Token(4)])
    assert [token.id for token in texts.take(2)] == [3, 4]
    assert texts.take(5) == []


def test_however_texts_are_cut() -> None:
    draw = Random(12)
    for _ in range(300):
        texts, ends, whole = TokenTexts(), [], 0
        for number in range(draw.randint(1, 6)):
            size = draw.randint(1, 4)
            texts.add("x" * size, [Token(number)])
            whole += size
            ends.append(whole)
        told, found = 0, 0
        while told < whole:
            size = draw.randint(0, min(3, whole - told))
            told += size
            found += len(texts.take(size))
            assert found == sum(end <= told for end in ends)
