"""Exact answers of the demo checkpoint by preset, and how far each is from full precision.

    .venv/bin/python benchmarks/quality.py [--every 4] PRESET[,group=format...] ...

Prints a Markdown row a preset: size, exact answers (greedy, the training questions), and the
Kullback-Leibler divergence to the portable graph over the tokens of true answers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import numpy as np

from evaluation.graph_runner import GraphRunner
from evaluation.parity import log_softmax
from export.checkpoint import Checkpoint
from export.exporter import Options, export, export_portable
from graph_passes.quantization import Quantization
from runtimes.answer import answer
from runtimes.harmony import Message, SystemPrompt
from runtimes.package import Package
from runtimes.sampling import Sampling
from runtimes.target import get_target

DEMO = Path(__file__).parent.parent / "demo"
BATCH = 50


@click.command()
@click.argument("presets", nargs=-1, required=True)
@click.option("--every", default=1, help="Take every n-th question.")
def main(presets: tuple[str, ...], every: int) -> None:
    pairs = [json.loads(line) for line in (DEMO / "training/pairs.jsonl").open(encoding="utf-8")]
    pairs = pairs[::every]
    checkpoint = Checkpoint.open(DEMO)
    print("| preset | MB | exact answers | KL to fp32, mean | top-1 |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        portable = export_portable(checkpoint, Path(scratch) / "portable")
        for text in presets:
            name, *changes = text.split(",")
            quantization = Quantization.parse(name, changes)
            options = Options(get_target("cpu"), quantization, all_logits=True)
            folder = Path(scratch) / text.replace(":", "-")
            made = export(checkpoint, options, folder, lambda *_: None)
            package = Package.open(folder)
            kl, top1 = divergence(package, portable, pairs[::20])
            exact = exact_share(package, pairs)
            size = made["written_bytes"] / 1e6
            print(f"| {text} | {size:.1f} | {exact:.1%} | {kl:.5f} | {top1:.1%} |", flush=True)


def exact_share(package: Package, pairs: list[dict[str, str]]) -> float:
    right = 0
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        answers = answer(
            package,
            [pair["question"] for pair in batch],
            sampling=Sampling(do_sample=False),
            max_new_tokens=120,
        )
        found = zip(answers, batch, strict=True)
        right += sum(given["text"] == pair["answer"] for given, pair in found)
    return right / len(pairs)


def divergence(
    package: Package, portable: Path, pairs: list[dict[str, str]]
) -> tuple[float, float]:
    """Mean KL in nats and top-1 agreement over the reply's tokens."""
    windows = [layer.window if layer.windowed else None for layer in package.manifest.kv.layers]
    ours = GraphRunner(package.folder / package.manifest.graph, windows)
    theirs = GraphRunner(portable / "model.onnx", [None] * len(windows))
    kls, agreed = [], []
    for pair in pairs:
        harmony = package.harmony
        prompt = harmony.render(
            [Message("user", pair["question"])], system=SystemPrompt(date="2026-01-01")
        )
        reply = harmony.render_completion(pair["analysis"], pair["answer"])
        ids = np.array([prompt + reply])
        logits = []
        for runner in (ours, theirs):
            runner.reset()
            logits.append(runner.feed(ids)[0, len(prompt) - 1 : -1].astype(np.float64))
        other, reference = map(log_softmax, logits)
        kls.append((np.exp(reference) * (reference - other)).sum(-1))
        agreed.append(logits[0].argmax(-1) == logits[1].argmax(-1))
    return float(np.concatenate(kls).mean()), float(np.concatenate(agreed).mean())


if __name__ == "__main__":
    main()
