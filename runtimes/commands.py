"""gptoss generate, chat, bench and targets; what they use is imported when they run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gptoss_onnx.runtimes.console import (
    FOLDER,
    chat_loop,
    json_option,
    show,
    table,
    threads_option,
    what_is_missing,
)


def warn_if_slow(target: Any, recipe: Mapping[str, str]) -> None:
    """On stderr, where experts of a package have no fast kernel on this machine.

    None is a target of a later release: the manifest has all that running a package needs.
    """
    if target is not None and (why := target.slow_here(recipe.get("experts", ""))):
        click.echo(f"Warning: {why}", err=True)


def _open(folder: Path, threads: int | None) -> Any:
    from gptoss_onnx.runtimes.package import Package
    from gptoss_onnx.runtimes.target import known_target

    package = Package.open(folder, threads=threads)
    manifest = package.manifest
    warn_if_slow(known_target(manifest.target, manifest.min_runtime), manifest.recipe)
    return package


def generation_options(command: Any) -> Any:
    """The sampling options that generate and chat share; unset ones are the package's."""
    for option in reversed(
        (
            click.option("--max-new-tokens", type=click.IntRange(1)),
            click.option("--temperature", type=float, help="0 is greedy."),
            click.option("--top-p", type=float),
            click.option("--top-k", type=int),
            click.option("--min-p", type=float),
            click.option("--repetition-penalty", type=float),
            click.option("--seed", type=int),
            threads_option,
        )
    ):
        command = option(command)
    return command


def _options(package: Any, max_new_tokens: int | None, **sampling: Any) -> dict[str, Any]:
    given = {name: value for name, value in sampling.items() if value is not None}
    chosen = package.sampling_with(**given)
    # A seed or a penalty does not ask for sampling: greedy decoding stays greedy.
    if given.keys() & {"temperature", "top_p", "top_k", "min_p"}:
        chosen = replace(chosen, do_sample=chosen.temperature > 0)
    return {"max_new_tokens": max_new_tokens, "sampling": chosen}


@click.command()
@click.argument("package", type=FOLDER)
@click.argument("prompts", nargs=-1, required=True)
@click.option("--raw", is_flag=True, help="Continue the text itself instead of answering it.")
@generation_options
@json_option
def generate(
    package: Path,
    prompts: tuple[str, ...],
    raw: bool,
    threads: int | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer one or several PROMPTS at once.

    \b
    gptoss generate build/demo-cpu-int4 "What does os.path.join do?"
    """
    from gptoss_onnx.runtimes.answer import answer

    opened = _open(package, threads)
    options = _options(opened, **sampling)
    answers = answer(opened, prompts, raw=raw, **options)
    if as_json:
        click.echo(json.dumps(answers, ensure_ascii=False, indent=2))
    else:
        click.echo("\n".join(found["text"] for found in answers))
    if not raw:
        _note_what_is_missing(answers, options["max_new_tokens"])


def _note_what_is_missing(answers: list[dict[str, Any]], limit: int | None) -> None:
    """On stderr, a line a prompt; exit code 1 where one has no answer at all."""
    for number, found in enumerate(answers, 1):
        note = what_is_missing(
            found["text"],
            found["cut_in"],
            [m["recipient"] for m in found["messages"] if m["kind"] == "call"],
            limited=found["usage"]["new_tokens"] == limit,
        )
        if note:
            which = f"answer {number}: " if len(answers) > 1 else ""
            click.echo(f"[{which}{note}]", err=True)
    if not all(found["text"] for found in answers):
        sys.exit(1)


@click.command()
@click.argument("package", type=FOLDER)
@click.option("--instructions", help="Instructions for the whole conversation.")
@click.option("--reasoning", type=click.Choice(["low", "medium", "high"]), default="medium")
@click.option("--show-analysis", is_flag=True, help="Show the model's reasoning too.")
@generation_options
def chat(
    package: Path,
    instructions: str | None,
    reasoning: str,
    show_analysis: bool,
    threads: int | None,
    **sampling: Any,
) -> None:
    """Talk to PACKAGE; an empty line or Ctrl-D ends it, Ctrl-C an answer.

    \b
    gptoss chat build/demo-cpu-int4
    """
    from gptoss_onnx.runtimes.chat import Chat
    from gptoss_onnx.runtimes.harmony import SystemPrompt

    opened = _open(package, threads)
    conversation = Chat(
        opened,
        system=SystemPrompt(reasoning=reasoning),
        instructions=instructions,
        **_options(opened, **sampling),
    )
    chat_loop(conversation, show_analysis)


@click.command()
@click.argument("package", type=FOLDER)
@click.option("--prompt-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True)
@threads_option
@json_option
def bench(
    package: Path, prompt_tokens: int, new_tokens: int, threads: int | None, as_json: bool
) -> None:
    """Measure load, prefill, decode, memory and the share of the memory's bandwidth.

    \b
    gptoss bench build/demo-cpu-int4 --threads 2 --json
    """
    from gptoss_onnx.runtimes.bench import bench as run

    _open(package, threads)
    figures = run(package, prompt_tokens=prompt_tokens, new_tokens=new_tokens, threads=threads)
    show(figures.as_dict(), as_json)


@click.command()
@click.argument("name", required=False)
@json_option
def targets(name: str | None, as_json: bool) -> None:
    """List the targets and how each was verified; of target NAME every operator too.

    \b
    gptoss targets
    gptoss targets web
    """
    from gptoss_onnx.runtimes.target import get_target, load_targets
    from gptoss_onnx.runtimes.target_rows import describe, kernel_rows

    chosen = [get_target(name)] if name else list(load_targets().values())
    if as_json:
        rows = [describe(target) | {"kernels": kernel_rows(target)} for target in chosen]
        click.echo(json.dumps(rows[0] if name else rows, indent=2))
    elif name:
        show(describe(chosen[0]), as_json)
        table(kernel_rows(chosen[0]))
    else:
        table([describe(target) for target in chosen])
