"""`gptoss eval`: what a package's quantization cost, from its text to its report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_onnx.evaluation.generation import (
    compare_replies,
    package_replies,
    read_questions,
    reference_replies,
)
from gptoss_onnx.evaluation.probe import Probe
from gptoss_onnx.evaluation.reference import Progress, Reference, portable_graph, reference
from gptoss_onnx.evaluation.scoring import by_group, score, worst_tokens
from gptoss_onnx.evaluation.sensitivity import TOKENS, recorded, sensitivity
from gptoss_onnx.evaluation.statistics import histogram, metrics, router_agreement
from gptoss_onnx.evaluation.texts import Passage, Text, read_passages
from gptoss_onnx.evaluation.units import subset
from gptoss_onnx.evaluation.verify import providers_here
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.runtimes.bench import bench
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import Manifest
from gptoss_onnx.runtimes.package import Package

HELD_OUT, QUESTIONS = "evaluation/held_out.jsonl", "evaluation/questions.jsonl"
_SPEED_TOKENS = (64, 32)  # prompt, new


@dataclass(frozen=True)
class Options:
    """`text` and `questions` None are the checkpoint's own; `limit` is how many are asked."""

    text: Path | None = None
    questions: Path | None = None
    limit: int = 100
    threads: int | None = None
    sensitivity: bool = False  # also measure what each group of tensors costs by itself
    sensitivity_tokens: int = TOKENS  # of the text, on which that is measured


def evaluate(
    folder: Path, checkpoint: Checkpoint, options: Options, progress: Progress
) -> tuple[dict[str, Any], Reference]:
    """Figures of the package in `folder` against its checkpoint, and the reference they are from.

    Nothing is written into the package. UserError for a package of another checkpoint and for
    text that cannot be used.
    """
    # On the CPU where the package's own device is not here; then its speed means nothing.
    here = providers_here(Manifest.load(folder))
    package = Package.open(folder, threads=options.threads, providers=here or None)
    _same_source(package, checkpoint)
    if options.sensitivity:
        recorded(folder)  # what can be refused is refused before hours of work
    held_out = Text.beside(checkpoint, HELD_OUT)
    text = Text.read(options.text) if options.text else held_out
    if text is None:
        raise UserError(
            f"{checkpoint.place}: no {HELD_OUT}; give a text to evaluate on with --text FILE"
        )
    passages = read_passages(text, package.harmony, package.manifest.context_length)
    with ExitStack() as stack:
        portable = _once(lambda: stack.enter_context(portable_graph(checkpoint)))
        expected = reference(checkpoint, passages, portable, progress, options.threads)
        tokens = score(Probe.of_package(folder, options.threads), passages, expected, progress)
        languages, channels = by_group(tokens, passages)
        figures = {
            "source": package.manifest.source,
            "text": _described(text, passages),
            "quant": package.manifest.quant,
            "method": package.manifest.rounding.get("method", "search"),
            "kv": package.manifest.kv.dtype,
            "recipe": dict(package.manifest.recipe),
            "size_bytes": sum(entry.size for entry in package.manifest.files.values()),
            "all": metrics(tokens),
            "by_language": languages,
            "by_channel": channels,
            "kld_histogram": histogram(tokens.kld),
            "router_agreement": router_agreement(tokens),
            "worst_tokens": worst_tokens(tokens, passages, package.tokenizer),
        }
        if options.sensitivity:
            part = subset(passages, options.sensitivity_tokens)
            known = reference(checkpoint, part, portable, progress, options.threads)
            figures["sensitivity"] = sensitivity(
                folder, portable(), part, known, progress, options.threads
            )
        asked = options.questions or Text.beside(checkpoint, QUESTIONS)
        if asked is not None:
            questions = read_questions(asked, package.harmony, options.limit)
            theirs = reference_replies(
                expected, portable, questions, package.stop_ids, progress, options.threads
            )
            ours = package_replies(package, questions, progress)
            figures["generation"] = compare_replies(
                questions, ours, theirs, package.harmony, package.stop_ids
            )
    if {*here} & {*package.manifest.session["providers"]}:
        figures["speed"] = _speed(folder, options.threads)
    return figures, expected


def _same_source(package: Package, checkpoint: Checkpoint) -> None:
    source = package.manifest.source
    named, revision = source.get("name"), source.get("revision")
    if named != checkpoint.name or (revision and revision != checkpoint.revision):
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{package.folder}: was made from {named}{at}, not from {checkpoint.name}; "
            "give that checkpoint with --against"
        )
    same_format = source.get("expert_format") == checkpoint.expert_format
    if not same_format or GptOssSpec.from_config(package.config) != checkpoint.spec:
        raise UserError(
            f"{package.folder}: was made from another {named} than {checkpoint.place}, of other "
            "sizes; give that checkpoint with --against"
        )


def _described(text: Text, passages: list[Passage]) -> dict[str, Any]:
    return {
        "name": text.name,
        "sha256": text.sha256,
        "passages": len(passages),
        "tokens": sum(passage.tokens for passage in passages),
    }


def _speed(folder: Path, threads: int | None) -> dict[str, Any]:
    prompt, new = _SPEED_TOKENS
    measured = bench(folder, prompt_tokens=prompt, new_tokens=new, threads=threads).as_dict()
    names = ("prefill_tokens_per_second", "decode_tokens_per_second", "load_seconds")
    return {name: measured[name] for name in (*names, "threads", "machine", "onnxruntime")}


def _once(make: Callable[[], Path]) -> Callable[[], Path]:
    made: list[Path] = []

    def get() -> Path:
        if not made:
            made.append(make())
        return made[0]

    return get
