"""Greedy answers of a package and of its reference to the same questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_onnx.evaluation.graph_runner import GraphRunner
from gptoss_onnx.evaluation.reference import Progress, Reference
from gptoss_onnx.evaluation.statistics import interval
from gptoss_onnx.evaluation.texts import SYSTEM, Text, read_conversations
from gptoss_onnx.export.plan import GRAPH
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Options
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import read_reply
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.scheduler import generate_batch
from gptoss_onnx.runtimes.stream_parser import kind_of

MOST_TOKENS = 160
_BATCH = 50


@dataclass(frozen=True)
class Question:
    prompt: tuple[int, ...]
    answer: str  # the answer wanted, word for word


def read_questions(path: Path | Text, harmony: Harmony, limit: int) -> list[Question]:
    """The last answer of each conversation is what is asked for; at most `limit`, spread evenly."""
    questions = []
    for where, messages, row in read_conversations(path):
        if not messages or messages[-1].role != "assistant":
            raise UserError(f"{where}: a question's conversation ends with the answer wanted")
        asked = [m for m in messages[:-1] if m.channel != "analysis"]
        prompt = harmony.render(asked, system=SYSTEM, instructions=row.get("instructions"))
        questions.append(Question(tuple(prompt), messages[-1].content))
    if not questions:
        where = path.where if isinstance(path, Text) else str(path)
        raise UserError(f"{where}: holds no conversation to ask")
    step = -(-len(questions) // limit)
    return questions[::step]


def package_replies(
    package: Package, questions: Sequence[Question], progress: Progress
) -> list[list[int]]:
    """Greedy tokens up to the stop token, or MOST_TOKENS of them."""
    options = Options(MOST_TOKENS, Sampling(do_sample=False))
    replies: list[list[int]] = []
    for batch in _batches(questions):
        results = generate_batch(package, [list(q.prompt) for q in batch], options)
        replies += [list(result.ids) for result in results]
        progress("answers", len(replies), len(questions))
    return replies


def reference_replies(
    expected: Reference,
    portable: Callable[[], Path],
    questions: Sequence[Question],
    stop_ids: frozenset[int],
    progress: Progress,
    threads: int | None = None,
) -> list[list[int]]:
    """As `package_replies`, by the portable graph; kept beside the reference."""
    asked = json.dumps([MOST_TOKENS, sorted(stop_ids), [q.prompt for q in questions]])
    path = expected.folder / f"answers-{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    if path.is_file():
        kept: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    runner = GraphRunner(portable() / GRAPH, threads=threads or 0)
    replies: list[list[int]] = []
    for batch in _batches(questions):
        replies += _greedy(runner, batch, stop_ids)
        progress("reference answers", len(replies), len(questions))
    path.write_text(json.dumps(replies), encoding="utf-8")
    return replies


def _greedy(
    runner: GraphRunner, batch: Sequence[Question], stop_ids: frozenset[int]
) -> list[list[int]]:
    lengths = np.array([len(question.prompt) for question in batch])
    ids = np.zeros((len(batch), lengths.max()), np.int64)
    mask = np.zeros_like(ids)
    for place, question in enumerate(batch):
        size = len(question.prompt)
        ids[place, :size], mask[place, :size] = question.prompt, 1
    runner.reset(len(batch))
    last = runner.feed(ids, mask)[np.arange(len(batch)), lengths - 1]
    replies: list[list[int]] = [[] for _ in batch]
    going = np.ones(len(batch), bool)
    for _ in range(MOST_TOKENS):
        tokens = last.argmax(-1)
        for row in np.flatnonzero(going):
            replies[row].append(int(tokens[row]))
            going[row] = int(tokens[row]) not in stop_ids
        if not going.any():
            break
        last = runner.feed(tokens[:, None], going[:, None].astype(np.int64))[:, 0]
    return replies


def _batches(questions: Sequence[Question]) -> list[Sequence[Question]]:
    return [questions[start : start + _BATCH] for start in range(0, len(questions), _BATCH)]


def compare_replies(
    questions: Sequence[Question],
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
    harmony: Harmony,
    stop_ids: frozenset[int],
) -> dict[str, Any]:
    """Exact answers, replies that are well-formed harmony, and replies that came out different."""
    exact, parsed = {}, {}
    for name, replies in (("package", ours), ("reference", theirs)):
        said = [_final(reply, harmony, stop_ids) for reply in replies]
        parsed[name] = sum(text is not None for text in said) / len(said)
        exact[name] = [text == q.answer for text, q in zip(said, questions, strict=True)]
    places = np.arange(len(questions))
    flips = np.array([list(a) != list(b) for a, b in zip(ours, theirs, strict=True)])
    found = interval(places, np.array(exact["package"]))
    return {
        "questions": len(questions),
        "exact": {
            "package": found["mean"],
            "reference": float(np.mean(exact["reference"])),
            "ci": found["ci"],
        },
        "parsed": parsed,
        "flips": interval(places, flips),
    }


def _final(reply: Sequence[int], harmony: Harmony, stop_ids: frozenset[int]) -> str | None:
    """The final channel's text; None for a reply that did not end or named no such channel."""
    channel = harmony.tokenizer.special("<|channel|>")
    if not reply or reply[-1] not in stop_ids or channel not in reply:
        return None
    said = read_reply(harmony.tokenizer, reply, "stop", stop_ids=stop_ids).said
    return said[-1].content if said and kind_of(said[-1]) == "final" else None
