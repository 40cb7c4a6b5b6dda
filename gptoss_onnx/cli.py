"""gptoss: the command line. Each command is a few lines over the rooms that do the work."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from gptoss_onnx.assistant.batch_command import batch
from gptoss_onnx.assistant.serve_command import serve
from gptoss_onnx.assistant.user_commands import users
from gptoss_onnx.evaluation.commands import compare_command, eval_command, lm_eval_command
from gptoss_onnx.runtimes.commands import bench, chat, generate, targets
from gptoss_onnx.runtimes.console import (
    FOLDER,
    byte_progress,
    fail,
    json_option,
    show,
    stage_progress,
    table,
)
from gptoss_onnx.runtimes.errors import INSTALL, UserError

_SERVER = ("serve", "users", "batch")  # what the extra `serve` is for


class _Commands(click.Group):
    """One-line errors: exit 1 for what failed, 2 for wrong use (click's own)."""

    def invoke(self, context: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _interrupted)  # so that cleaning up happens there too
        try:
            return super().invoke(context)
        except UserError as error:
            fail(str(error))
        except ModuleNotFoundError as error:  # the runtime was installed alone
            extra = "serve" if context.invoked_subcommand in _SERVER else "export"
            extra = "ray" if error.name == "ray" else extra
            fail(f"this needs {error.name}: {INSTALL.format(extra=extra)}")
        except KeyboardInterrupt:
            fail("interrupted; nothing was left behind")


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gptoss-onnx")
def main() -> None:
    """Export GPT-OSS checkpoints to ONNX packages, and run them.

    \b
    gptoss export demo --quant int4 --output build/demo-cpu-int4
    gptoss chat build/demo-cpu-int4
    """


@main.command("export")
@click.argument("model")
@click.option(
    "--target",
    "target",
    default="cpu",
    show_default=True,
    help="One of `gptoss targets`, or several over one set of weights: cpu,web.",
)
@click.option("--min-runtime", metavar="VERSION", help="Oldest ONNX Runtime to run on, as 1.24.")
@click.option(
    "--activations",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="What graphs compute in. Default: the target's own.",
)
@click.option(
    "--quant",
    type=click.Choice(["fp32", "int8", "int4", "mxfp4"]),
    default="int4",
    show_default=True,
)
@click.option("--output", type=FOLDER, help="Default: build/<model>-<target>-<quant>.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="GROUP=FORMAT",
    help="Another format for embedding, qkv, o, experts or lm_head: lm_head=int8:64.",
)
@click.option("--calibrate", type=FOLDER, help="Chat JSONL or plain text to round for.")
@click.option("--bits-per-weight", type=float, help="Assign 4 or 8 bits by measurement, as 5.5.")
@click.option("--size", help="The same for a size of the package's data, as 12GB.")
@click.option("--recipe", type=FOLDER, help="Formats from JSON, a manifest.json or a package.")
@click.option(
    "--method",
    type=click.Choice(["rtn", "search", "gptq"]),
    help="How 4-bit codes are chosen. Default: gptq with --calibrate, else search.",
)
@click.option(
    "--kv",
    type=click.Choice(["float", "int8"]),
    help="KV cache; int8 takes a quarter, scaled by --calibrate's or MODEL's calibration text.",
)
@click.option("--link", is_flag=True, help="Refer to MXFP4 experts in the checkpoint's own files.")
@click.option(
    "--full-kv",
    is_flag=True,
    help="Full-length KV on sliding layers, for optimum and onnxruntime-genai.",
)
@click.option(
    "--tokenizer-graph",
    is_flag=True,
    help="Also the tokenizer as ONNX graphs; the manifest says which texts they read otherwise.",
)
@click.option("--all-logits", is_flag=True, help="Logits of every token, not only the last.")
@click.option("--max-memory", metavar="SIZE", help="What a phone has for the app, as 6GB.")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="The longest conversation on a phone, for its memory plan.  [default: 4096]",
)
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@click.option("--revision", help="The hub's branch, tag or commit.")
@click.option("--force", is_flag=True, help="Replace a package that is in the way.")
@json_option
def export_command(
    model: str, output: Path | None, dry_run: bool, as_json: bool, **choices: Any
) -> None:
    """Export MODEL, a checkpoint folder or a hub id, to a package.

    \b
    gptoss export openai/gpt-oss-20b --quant mxfp4 --link --output build/20b
    """
    from gptoss_onnx.exporting import export_package

    done = export_package(
        model, output, dry_run=dry_run, progress=stage_progress, warn=_warn, **choices
    )
    figures = {"output": str(done.output), **done.figures}
    if as_json:
        memory = {"memory": asdict(done.memory)} if done.memory else {}
        show({**figures, **memory}, as_json)
        return
    figures.pop("warnings", None)  # told as they came
    if done.memory:
        show(done.memory.rows(), as_json)
    if done.assignment:
        table(done.assignment.rows())
    show(figures, as_json)


def _warn(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)


@main.command()
@click.argument("package", type=FOLDER)
@click.option("--against", metavar="CHECKPOINT", help="Compare with its full-precision graph.")
@json_option
def verify(package: Path, against: str | None, as_json: bool) -> None:
    """Check every byte, every kernel and a run of PACKAGE; with --against, what it computes.

    \b
    gptoss verify build/demo-cpu-int4 --against demo
    """
    from gptoss_onnx.runtimes.manifest import Manifest
    from gptoss_onnx.verifying import verify_package

    size = sum(entry.size for entry in Manifest.load(package).files.values())
    with byte_progress("checking", size) as progress:
        found = verify_package(package, against, progress)
    for problem in found.problems[:-1]:
        click.echo(f"Error: {package}: {problem}", err=True)
    if found.problems:
        fail(f"{package}: {found.problems[-1]}")
    kernels = "checked" if found.kernels_checked else "not checked: no table, or no onnx-ir"
    needs = ", ".join(found.providers_missing)
    run = f"not here: that needs {needs}" if needs else "checked"
    checked = {"package": str(package), "verified": True, "kernels": kernels, "run": run}
    show({**checked, **(found.parity or {})}, as_json)


@main.command()
@click.argument("path", metavar="PACKAGE|CHECKPOINT")
@json_option
def inspect(path: str, as_json: bool) -> None:
    """Show what is in a package or a checkpoint.

    \b
    gptoss inspect build/demo-cpu-int4
    """
    from gptoss_onnx.evaluation.inspect import describe

    found = describe(path)
    graphs = [] if as_json else found.pop("graphs", {}).items()
    show(found, as_json)
    if graphs:
        table([{"graph": name, **_megabytes(about)} for name, about in graphs])


def _megabytes(graph: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {n: f"{v / 1e6:,.1f} MB" if "bytes" in n else v for n, v in graph.items()}
    return sizes | {"operators": sum(graph["operators"].values())}


@main.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--geometry",
    type=click.Choice(["gpt-oss-20b", "gpt-oss-120b", "tiny"]),
    default="tiny",
    show_default=True,
)
@click.option("--layers", type=click.IntRange(1))
@click.option("--experts", type=click.IntRange(1))
@click.option("--experts-per-token", type=click.IntRange(1))
@click.option("--hidden", type=click.IntRange(1))
@click.option("--intermediate", type=click.IntRange(1))
@click.option("--heads", type=click.IntRange(1))
@click.option("--kv-heads", type=click.IntRange(1))
@click.option("--head-dim", type=click.IntRange(1))
@click.option("--vocab", type=click.IntRange(1))
@click.option("--sliding-window", type=click.IntRange(1))
@click.option("--format", type=click.Choice(["mxfp4", "bf16"]), default="mxfp4", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--tokenizer", type=FOLDER, help="A folder to copy a tokenizer from.")
def synth(folder: Path, **sizes: Any) -> None:
    """Write a random checkpoint in the published layout to FOLDER.

    \b
    gptoss synth build/synth --geometry gpt-oss-20b --layers 4
    """
    from gptoss_onnx.export.synthetic import synthesize

    with stage_progress() as progress:
        synthesize(folder, progress=lambda done, total: progress("weights", done, total), **sizes)
    click.echo(str(folder))


for command in (
    *(eval_command, compare_command, lm_eval_command, generate, chat, bench, targets),
    *(serve, users, batch),
):
    main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
