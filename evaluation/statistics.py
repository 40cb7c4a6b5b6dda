"""How far one next-token distribution is from another, over tokens, with intervals.

KL(reference || package) in nats, in float64. Intervals are 95 % bootstrap intervals over passages:
tokens of one conversation are not independent, conversations are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]
RESAMPLES = 1000
TOP = 3  # most likely tokens kept for each position
_ROW_VALUES = 1 << 21  # logits turned to float64 at once: 16 MiB


@dataclass(frozen=True)
class Tokens:
    """One entry a token that counts, in the order of the passages."""

    passage: Int  # [N]
    position: Int  # [N] of the token in its passage
    kld: Float  # [N] nats
    reference: Float  # [N] log probability of the true token
    package: Float  # [N]
    agree: NDArray[np.bool_]  # [N] both have the same first choice
    routes: NDArray[np.bool_]  # [N, L] both chose the same set of experts
    reference_top: Int  # [N, TOP] most likely tokens
    reference_top_log: Float  # [N, TOP]
    package_top: Int
    package_top_log: Float

    @classmethod
    def join(cls, parts: list[Tokens]) -> Tokens:
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

    def where(self, chosen: NDArray[np.bool_]) -> Tokens:
        return Tokens(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def log_softmax(logits: NDArray[np.floating[Any]]) -> Float:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def compare_rows(
    reference: NDArray[np.float32],
    package: NDArray[np.float32],
    true: Int,
    passage: int,
    position: Int,
    routes: NDArray[np.bool_],
) -> Tokens:
    """Tokens of logits [n, V] against logits [n, V]; `true` [n] is what came next."""
    parts = []
    step = max(1, _ROW_VALUES // reference.shape[1])
    for start in range(0, len(true), step):
        part = slice(start, start + step)
        ours, theirs, next_token = package[part], reference[part], true[part]
        p, q = log_softmax(theirs), log_softmax(ours)
        rows = np.arange(len(next_token))
        theirs_top, ours_top = _top(p), _top(q)
        parts.append(
            Tokens(
                passage=np.full(len(rows), passage),
                position=position[part],
                kld=np.maximum((np.exp(p) * (p - q)).sum(-1), 0),  # rounding may go below zero
                reference=p[rows, next_token],
                package=q[rows, next_token],
                agree=theirs.argmax(-1) == ours.argmax(-1),
                routes=routes[part],
                reference_top=theirs_top,
                reference_top_log=np.take_along_axis(p, theirs_top, -1),
                package_top=ours_top,
                package_top_log=np.take_along_axis(q, ours_top, -1),
            )
        )
    return Tokens.join(parts)


def _top(logs: Float) -> Int:
    found = np.argpartition(-logs, TOP, axis=-1)[:, :TOP]
    order = np.argsort(-np.take_along_axis(logs, found, -1), axis=-1)
    return np.take_along_axis(found, order, -1)


def metrics(tokens: Tokens) -> dict[str, Any]:
    """The figures of a set of tokens, as report.json keeps them."""
    change = np.exp(tokens.package) - np.exp(tokens.reference)
    surprise = tokens.reference - tokens.package
    kld = tokens.kld
    quantiles = {"median": 50, "p90": 90, "p99": 99, "p99.9": 99.9}
    return {
        "tokens": len(kld),
        "kld": {
            **interval(tokens.passage, kld),
            **{name: float(np.percentile(kld, q)) for name, q in quantiles.items()},
            "max": float(kld.max()),
        },
        "perplexity": {
            "package": float(np.exp(-tokens.package.mean())),
            "reference": float(np.exp(-tokens.reference.mean())),
            "ratio": float(np.exp(surprise.mean())),
            "ci": interval(tokens.passage, surprise, np.exp)["ci"],
        },
        "top1": interval(tokens.passage, tokens.agree),
        "delta_p": {
            "rms": float(np.sqrt((change**2).mean())),
            "ci": interval(tokens.passage, change**2, np.sqrt)["ci"],
            **{f"p{q}": float(np.percentile(change, q)) for q in (1, 5, 50, 95, 99)},
        },
    }


def interval(
    groups: Int,
    values: NDArray[Any],
    transform: Callable[[Float], Float] = lambda mean: mean,
) -> dict[str, Any]:
    """Mean of `values` and its 95 % interval when whole groups (passages) are drawn again."""
    _, place = np.unique(groups, return_inverse=True)
    sums = np.bincount(place, weights=values.astype(np.float64))
    counts = np.bincount(place)
    rng, means = np.random.default_rng(0), np.empty(RESAMPLES)
    for resample in range(RESAMPLES):  # one at a time: there may be many passages
        drawn = rng.integers(0, len(sums), len(sums))
        means[resample] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.percentile(transform(means), [2.5, 97.5])
    mean = float(transform(np.float64(values.mean())))  # type: ignore[arg-type]
    return {"mean": mean, "ci": [float(low), float(high)]}


def router_agreement(tokens: Tokens) -> list[dict[str, Any]]:
    """Share of tokens whose experts are the same set, layer by layer."""
    return [
        {"layer": layer, **interval(tokens.passage, tokens.routes[:, layer])}
        for layer in range(tokens.routes.shape[1])
    ]


def histogram(kld: Float) -> Mapping[str, list[float]]:
    """Counts of KL over bins of a third of a decade from 1e-9 to 100, for plotting."""
    edges = np.linspace(-9, 2, 34)
    counts, _ = np.histogram(np.log10(np.clip(kld, 1e-9, 99)), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
