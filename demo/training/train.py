"""Train the demo checkpoint: `python -m demo.training.train --work /tmp/demo-train`.

Half an hour on two idle cores. Killed, it goes on from the state it last saved in --work.
"""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor
from transformers import GptOssForCausalLM

from demo.training.checkpoint import write_settings, write_weights
from demo.training.dataset import PAIRS
from demo.training.measure import report
from demo.training.model import SharedPrefix, configuration
from gptoss_onnx.runtimes.harmony import Harmony, Message, SystemPrompt
from gptoss_onnx.runtimes.tokenizer import Tokenizer

DEMO = Path(__file__).parents[1]
SEED = 20240805
BATCH = 32
PEAK, FLOOR, WARMUP = 2e-3, 1e-5, 100
INSTRUCTIONS = (
    "Answer in one sentence.",
    "Be brief.",
    "You are a helpful assistant.",
    "Answer questions about Python.",
    "请用一句话回答。",
)
# MXFP4 exponents move slowly and choosing them costs more than a step.
REFRESH = 40
SAVE_SECONDS = 180


@dataclass(frozen=True)
class Pair:
    """One question with its answer, and the token ids they come to."""

    language: str
    question: list[int]
    completion: list[int]
    history: list[int]


def read_pairs(harmony: Harmony) -> list[Pair]:
    pairs = []
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked = Message("user", row["question"])
        told = Message("assistant", row["answer"], "final")
        pairs.append(
            Pair(
                row["language"],
                harmony.render([asked], system=None),
                harmony.render_completion(row["analysis"], row["answer"]),
                harmony.render([asked, told], system=None, reply=False),
            )
        )
    return pairs


@dataclass(frozen=True)
class Batch:
    prefix: Tensor  # [S]
    segments: Tensor  # [P, L]
    lengths: Tensor  # [P]
    targets: Tensor  # [P, L]


def epoch_batches(pairs: list[Pair], harmony: Harmony, epoch: int) -> list[Batch]:
    """Every pair once, those of a batch of like length; the same for the same epoch."""
    draw = random.Random(SEED + epoch)
    developer = [harmony.render([], system=None, instructions=i, reply=False) for i in INSTRUCTIONS]
    items = []
    for pair in pairs:
        # Other settings and an earlier turn, so that the answer hangs on the question alone.
        head = draw.choice(developer) if draw.random() < 0.1 else []
        head = head + (draw.choice(pairs).history if draw.random() < 0.25 else [])
        items.append((head + pair.question, pair.completion))
    draw.shuffle(items)
    pool = 16 * BATCH
    batches = []
    for start in range(0, len(items), pool):
        alike = sorted(items[start : start + pool], key=lambda item: len(item[0]) + len(item[1]))
        for place in range(0, len(alike), BATCH):
            batches.append(_batch(alike[place : place + BATCH], harmony, draw))
    draw.shuffle(batches)
    return batches


def _batch(
    items: list[tuple[list[int], list[int]]], harmony: Harmony, draw: random.Random
) -> Batch:
    date = f"{draw.randint(2023, 2029)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
    system = SystemPrompt(date=date, reasoning=draw.choice(["low", "medium", "medium", "high"]))
    lengths = torch.tensor([len(prompt) + len(completion) for prompt, completion in items])
    segments = torch.zeros(len(items), int(lengths.max()), dtype=torch.long)
    targets = torch.full_like(segments, -100)
    for row, (prompt, completion) in enumerate(items):
        ids = torch.tensor(prompt + completion)
        segments[row, : len(ids)] = ids
        targets[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    prefix = torch.tensor(harmony.render([], system=system, reply=False))
    return Batch(prefix, segments, lengths, targets)


def learning_rate(step: int, steps: int) -> float:
    done = max(0, step - WARMUP) / max(1, steps - WARMUP)
    cosine = FLOOR + (PEAK - FLOOR) * (1 + math.cos(math.pi * done)) / 2
    return cosine * min(1, (step + 1) / WARMUP)


def train(harmony: Harmony, work: Path, epochs: int, mxfp4_from: float) -> GptOssForCausalLM:
    """The trained model. `mxfp4_from`: from which share of the steps experts are rounded."""
    torch.manual_seed(SEED)
    pairs = read_pairs(harmony)
    config = configuration(harmony.tokenizer, 4096)
    model: GptOssForCausalLM = GptOssForCausalLM(config)  # type: ignore[no-untyped-call]
    runner = SharedPrefix(model)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK, weight_decay=0.0, fused=True)
    per_epoch = math.ceil(len(pairs) / BATCH)
    steps = epochs * per_epoch
    step, spent = _restore(work, model, optimizer)
    start = time.monotonic() - spent
    saved = time.monotonic()
    first, exact, seen, tokens = step, 0, 0, 0
    batches: list[Batch] = []
    while step < steps:
        epoch, place = divmod(step, per_epoch)
        if not batches or place == 0:
            batches = epoch_batches(pairs, harmony, epoch)
        if step >= mxfp4_from * steps and (not runner.exponents or step % REFRESH == 0):
            runner.refresh_exponents()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        batch = batches[place]
        loss, right = runner.loss(batch.prefix, batch.segments, batch.lengths, batch.targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        exact, seen = exact + right, seen + len(batch.lengths)
        tokens += int(batch.lengths.sum()) + len(batch.prefix)
        now = time.monotonic()
        if step % 20 == 0 or step == steps:
            rate = (step - first) / (now - start - spent)
            click.echo(
                f"step {step}/{steps} epoch {epoch + 1} loss {loss.item():.4f}"
                f" exact {exact / seen:.1%} {tokens / (now - start - spent):.0f} tokens/s"
                f" {rate:.2f} steps/s {(steps - step) / rate / 60:.1f} min left"
            )
            exact = seen = 0
        if now - saved > SAVE_SECONDS or step == steps:
            _save(work, model, optimizer, step, now - start)
            saved = now
    return model


def _save(
    work: Path, model: GptOssForCausalLM, optimizer: torch.optim.Optimizer, step: int, spent: float
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    # Renamed when whole: a process killed while it writes leaves the last state as it was.
    torch.save(state | {"step": step, "spent": spent}, work / "state.tmp")
    (work / "state.tmp").replace(work / "state.pt")


def _restore(
    work: Path, model: GptOssForCausalLM, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    path = work / "state.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["spent"]


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Keeps the state.")
@click.option("--epochs", default=23, show_default=True)
@click.option("--mxfp4-from", default=0.5, show_default=True, help="Share of steps before MXFP4.")
@click.option("--threads", default=2, show_default=True)
def main(work: Path, epochs: int, mxfp4_from: float, threads: int) -> None:
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    harmony = Harmony(Tokenizer(DEMO))
    model = train(harmony, work, epochs, mxfp4_from)
    stops = [harmony.tokenizer.special(n) for n in ("<|return|>", "<|call|>", "<|endoftext|>")]
    write_settings(DEMO, model.config, stops)
    write_weights(DEMO, model)
    report()


if __name__ == "__main__":
    main()
