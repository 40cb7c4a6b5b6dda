"""gptoss batch; what it uses is imported when it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from gptoss_onnx.runtimes.console import FOLDER, fail, stage_progress, threads_option

_HERE = "here"  # of --ray without an address


@click.command()
@click.argument("package", type=FOLDER)
@click.argument("requests", metavar="IN.JSONL", type=FOLDER)
@click.argument("answers", metavar="OUT.JSONL", type=FOLDER)
@click.option("--rows", type=click.IntRange(1), default=16, show_default=True,
              help="Replies that are written at once.")  # fmt: skip
@click.option("--context", type=click.IntRange(2), metavar="TOKENS",
              help="The longest conversation. Default: the package's.")  # fmt: skip
@click.option("--cache", type=click.IntRange(0), metavar="BYTES",
              help="Memory for what prompts have in common.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="When a reply is cut. Default: never.")  # fmt: skip
@click.option("--max-loaded", type=click.IntRange(1), default=1, show_default=True,
              help="Packages of a folder that are loaded at once.")  # fmt: skip
@click.option("--log-text", is_flag=True, help="Keep prompts and answers in the usage log.")
@click.option("--data", type=FOLDER, help="Where log and responses are kept.")
@click.option("--terms", type=FOLDER, help="Terms and patterns to refuse, a file.")
@click.option("--policy", type=FOLDER, help="What to refuse, in words, a file.")
@click.option("--policy-package", type=FOLDER, help="The package that judges by --policy.")
@click.option("--ray", metavar="[ADDRESS]", is_flag=False, flag_value=_HERE,
              help="On a Ray cluster that sees the same files; without an address, on one that "
              "RAY_ADDRESS names or that starts here.")  # fmt: skip
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True,
              help="With --ray: processes, each with a package of its own.")  # fmt: skip
@threads_option
def batch(requests: Path, answers: Path, ray: str | None, replicas: int, **options: Any) -> None:
    """Answer the requests of an OpenAI batch file.

    Started again, it goes on where it ended. The exit code is 1 if an answer is an error.

    \b
    gptoss batch build/demo-cpu-int4 in.jsonl out.jsonl
    """
    from gptoss_onnx.assistant.batch_file import Answers, check_requests, read_lines

    count = check_requests(requests)
    with ExitStack() as stack:
        out = stack.enter_context(Answers(answers))
        before = len(out.done)
        progress = stack.enter_context(stage_progress("requests"))

        def write(found: Sequence[bytes]) -> None:
            out.write(found)
            progress("answered", len(out.done), count)

        left = (line for line in read_lines(requests) if line.key not in out.done)
        try:
            if ray is not None:
                from gptoss_onnx.assistant.ray_batch import answer_on_ray

                address = None if ray == _HERE else ray
                answer_on_ray(requests, left, write, options, address, replicas)
            else:
                from gptoss_onnx.assistant.batch_answers import answer_here

                asyncio.run(answer_here(left, write, options))
        except KeyboardInterrupt:
            fail(f"interrupted with {len(out.done)} of {count} answered: start again to go on")
    click.echo(f"{answers}: {len(out.done)} answers, {len(out.done) - before} of them new")
    if out.failed:
        fail(f"{out.failed} of {len(out.done)} answers in {answers} are errors")
