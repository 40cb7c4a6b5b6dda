"""How far a package's next-token distribution is from that of its checkpoint's portable graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.evaluation.graph_runner import GraphRunner
from gptoss_onnx.evaluation.statistics import log_softmax
from gptoss_onnx.runtimes.package import Package

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Parity:
    """Over `tokens` decode steps behind a chunked prefill that passes the window."""

    tokens: int
    max_logit_difference: float
    mean_kl: float  # nats, of the package from the portable graph
    top1_agreement: float  # share of tokens


def parity(package: Package, portable: Path, steps: int = 48) -> Parity:
    """Feed both graphs the same random tokens: prefill in two chunks, then `steps` decodes."""
    layers = package.manifest.kv.layers
    window = max((layer.window or 0 for layer in layers), default=0)
    prefill = min(window + 32, package.manifest.context_length - steps)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, package.manifest.vocab_size, (1, prefill + steps))
    windows = [layer.kept for layer in layers]
    ours = _logits(GraphRunner(package.folder / package.manifest.graph, windows), ids, prefill)
    theirs = _logits(GraphRunner(portable / "model.onnx", [None] * len(layers)), ids, prefill)
    reference, other = log_softmax(theirs), log_softmax(ours)
    return Parity(
        tokens=len(ours),
        max_logit_difference=float(np.abs(ours - theirs).max()),
        mean_kl=float((np.exp(reference) * (reference - other)).sum(-1).mean()),
        top1_agreement=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    )


def _logits(runner: GraphRunner, ids: NDArray[np.int64], prefill: int) -> Float:
    """float64 [steps + 1, V]: after the prefill, then after each single token."""
    half = prefill // 2
    runner.feed(ids[:, :half])
    rows = [runner.feed(ids[:, half:prefill])[0, -1]]
    rows += [runner.feed(ids[:, i : i + 1])[0, -1] for i in range(prefill, ids.shape[1])]
    return np.stack(rows).astype(np.float64)
