"""A package's tokens against the reference's, chunk by chunk."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptoss_onnx.evaluation.probe import Probe
from gptoss_onnx.evaluation.reference import Progress, Reference, chosen, predicting
from gptoss_onnx.evaluation.statistics import Tokens, compare_rows, metrics
from gptoss_onnx.evaluation.texts import Passage
from gptoss_onnx.runtimes.tokenizer import Tokenizer

WORST = 10
_CONTEXT = 24  # tokens of context shown on each side of a bad one


def score(
    probe: Probe, passages: Sequence[Passage], expected: Reference, progress: Progress
) -> Tokens:
    """Every token that counts, in order; one chunk of logits is in memory at a time."""
    parts: list[Tokens] = []
    total, done, row = sum(len(passage.ids) for passage in passages), 0, 0
    for number, passage in enumerate(passages):
        ids = np.array(passage.ids)
        for chunk in probe.run(passage.ids):
            positions = predicting(passage, chunk)
            rows = positions - chunk.start
            stored = slice(row, row + len(rows))
            row += len(rows)
            done += len(chunk.logits)
            progress("package", done, total)
            if not len(rows):
                continue
            routes = chosen(chunk.routers[:, rows], expected.top_k)
            same = (routes == expected.routes(stored)).all(-1)
            parts.append(
                compare_rows(
                    expected.logits(stored),
                    chunk.logits[rows],
                    ids[positions + 1],
                    number,
                    positions + 1,
                    same,
                )
            )
    return Tokens.join(parts)


def by_group(tokens: Tokens, passages: Sequence[Passage]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures by language and by channel."""
    languages = np.array([passages[n].language for n in tokens.passage])
    channels = np.array(
        [_channel(passages[n], p) for n, p in zip(tokens.passage, tokens.position, strict=True)]
    )
    return (
        {str(name): metrics(tokens.where(languages == name)) for name in np.unique(languages)},
        {str(name): metrics(tokens.where(channels == name)) for name in np.unique(channels)},
    )


def _channel(passage: Passage, position: int) -> str:
    return next(s.channel for s in passage.spans if s.start <= position < s.stop)


def worst_tokens(
    tokens: Tokens, passages: Sequence[Passage], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The tokens of greatest divergence with their context and both models' first choices."""

    def choices(ids: Any, logs: Any) -> list[list[Any]]:
        pairs = zip(ids, logs, strict=True)
        return [[tokenizer.show([int(i)]), math.exp(log)] for i, log in pairs]

    found = []
    for place in heapq.nlargest(WORST, range(len(tokens.kld)), key=tokens.kld.__getitem__):
        passage, at = passages[tokens.passage[place]], int(tokens.position[place])
        ids = list(passage.ids)
        found.append(
            {
                "kld": float(tokens.kld[place]),
                "before": tokenizer.show(ids[max(0, at - _CONTEXT) : at]),
                "token": tokenizer.show(ids[at : at + 1]),
                "after": tokenizer.show(ids[at + 1 : at + _CONTEXT]),
                "language": passage.language,
                "channel": _channel(passage, at),
                "reference": choices(tokens.reference_top[place], tokens.reference_top_log[place]),
                "package": choices(tokens.package_top[place], tokens.package_top_log[place]),
            }
        )
    return found
