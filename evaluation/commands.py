"""gptoss eval, compare and lm-eval; what they use is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptoss_onnx.runtimes.console import (
    FOLDER,
    fail,
    json_option,
    show,
    stage_progress,
    table,
    threads_option,
)
from gptoss_onnx.runtimes.errors import INSTALL, UserError


@click.command("eval")
@click.argument("package", type=FOLDER)
@click.option("--against", metavar="CHECKPOINT", required=True, help="What it was made from.")
@click.option("--text", type=FOLDER, help="Chat JSONL or plain text; default: the checkpoint's.")
@click.option("--questions", type=FOLDER, help="Chat JSONL whose last answers are wanted exactly.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Questions.")
@click.option("--sensitivity", is_flag=True, help="What each group of tensors costs by itself.")
@click.option("--report", type=FOLDER, help="A folder for report.html and report.json.")
@click.option("--fail-if", "conditions", multiple=True, help="Exit 1 when it holds: kld>0.03.")
@threads_option
@json_option
def eval_command(
    package: Path,
    against: str,
    sensitivity: bool,
    report: Path | None,
    conditions: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Measure what PACKAGE lost against the full-precision graph of its checkpoint.

    \b
    gptoss eval build/demo-cpu-int4 --against demo --report build/report
    """
    from gptoss_onnx.evaluation.evaluate import Options, evaluate
    from gptoss_onnx.evaluation.gate import Gate, failures
    from gptoss_onnx.evaluation.recommend import recommendation
    from gptoss_onnx.evaluation.results import record, summary
    from gptoss_onnx.export.checkpoint import open_checkpoint

    gates = [Gate.parse(condition) for condition in conditions]
    checkpoint = open_checkpoint(against)
    with stage_progress("tokens") as progress:
        figures, reference = evaluate(
            package, checkpoint, Options(**options, sensitivity=sensitivity), progress
        )
    if advice := recommendation(package, checkpoint.expert_format, figures, reference):
        figures["recommendation"] = advice
    record(package, figures, reference, report)
    show(figures if as_json else summary(figures), as_json)
    if advice and not as_json:
        click.echo(f"Recommended for these weights: {advice}")
    if problems := failures(gates, figures):
        fail(f"{package}: {'; '.join(problems)}")


@click.command(
    "lm-eval", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval_command(arguments: tuple[str, ...]) -> None:
    """Run lm-evaluation-harness with the model `gptoss`; its own options follow (-h lists them).

    \b
    gptoss lm-eval --model gptoss --model_args package=build/demo-cpu-int4 --tasks mmlu
    """
    try:
        from gptoss_onnx.evaluation.lm_harness import run
    except ModuleNotFoundError as error:
        how = INSTALL.format(extra="lm-eval")
        raise UserError(f"this needs {error.name}: {how}") from error
    run(arguments)


@click.command("compare")
@click.argument("packages", type=FOLDER, nargs=-1, metavar="PACKAGE PACKAGE...")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="An HTML file.")
@json_option
def compare_command(packages: tuple[Path, ...], report: Path | None, as_json: bool) -> None:
    """Put the figures of evaluated packages side by side.

    \b
    gptoss compare build/demo-cpu-int4 build/demo-cpu-int8 --report build/compare.html
    """
    from gptoss_onnx.evaluation.compare import read, render, rows

    found, problems = read(packages)
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(render(found, problems), encoding="utf-8")
    if as_json:
        show({"packages": found, "problems": problems}, as_json)
        return
    table(rows(found))
    for problem in problems:
        click.echo(f"Warning: {problem}", err=True)
