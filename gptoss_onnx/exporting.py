"""One front door for an export: a model by name or folder, choices, and a package comes out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_onnx.evaluation.recommend import recommend
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import Progress, export
from gptoss_onnx.export.package_files import chat_warning
from gptoss_onnx.export.plan import Options, check, plan, summary
from gptoss_onnx.export.staging import check_free
from gptoss_onnx.mobile.memory_plan import MemoryPlan
from gptoss_onnx.mobile.packaging import finish, plan_memory
from gptoss_onnx.runtimes.target import get_target
from gptoss_onnx.tuning.assign import Assignment
from gptoss_onnx.tuning.tuning import Tuning, figures, formats, kv_of, tuned


@dataclass(frozen=True)
class Exported:
    """What an export wrote to the folder `output`, or would write."""

    output: Path
    figures: Mapping[str, Any]  # source, target, recipe, graphs and bytes
    assignment: Assignment | None  # of bits, where they were assigned
    memory: MemoryPlan | None  # what a phone needs for it


@contextmanager
def quiet(unit: str) -> Iterator[Progress]:
    """Shows nothing."""
    yield lambda stage, done, total: None


def export_package(
    model: str | Path,
    output: str | Path | None = None,
    *,
    target: str = "cpu",
    quant: str = "int4",
    changes: Sequence[str] = (),
    recipe: str | Path | None = None,
    calibrate: str | Path | None = None,
    method: str | None = None,
    bits_per_weight: float | None = None,
    size: str | None = None,
    min_runtime: str | None = None,
    max_memory: str | None = None,
    context: int | None = None,
    revision: str | None = None,
    dry_run: bool = False,
    progress: Callable[[str], AbstractContextManager[Progress]] = quiet,
    warn: Callable[[str], None] = warnings.warn,
    **options: Any,
) -> Exported:
    """Export `model`, a checkpoint's folder or a hub id, to a package.

    `output` is build/<model>-<target>-<quant> unless given; it is there whole or not at all.
    `target` is one of `gptoss targets`, or several with commas between them; `changes` are
    "group=format", as "lm_head=int8:64". The other choices are those of `gptoss export --help`,
    `options` the rest of `Options` (link, force, all_logits, kv, full_kv, activations). `progress`
    makes a bar for a unit, "steps" or "bytes"; `warn` is told, a line each, what may disappoint.
    UserError for what cannot be done, before anything is written where it can be known.

    >>> from gptoss_onnx import export_package
    >>> export_package("demo", "build/example", quant="int8", force=True).figures["target"]
    'cpu'
    """
    tuning = Tuning(_path(calibrate), method, bits_per_weight, size)
    names = list(dict.fromkeys(name.strip() for name in target.split(",")))
    first, *also = (get_target(name, min_runtime) for name in names)
    quantization = formats(quant, tuple(changes), _path(recipe), tuning)
    checkpoint = open_checkpoint(str(model), revision)
    warned: list[str] = []

    def tell(message: str) -> None:
        warned.append(message)
        warn(message)

    wanted = Options(first, quantization, also=tuple(also), **options)
    chosen = [f"kv-{wanted.kv}" if wanted.kv else None, wanted.activations, min_runtime]
    suffix = "-".join(["+".join(names), quant, *filter(None, chosen)])
    folder = _path(output) or Path("build") / f"{checkpoint.name}-{suffix}"
    kv = kv_of(checkpoint, wanted, tuning)
    # What can be refused is refused first: tuning may take hours.
    check(checkpoint, wanted, kv_scales=kv == "int8")
    if not dry_run:
        check_free(folder, wanted.force)
    plan_memory(checkpoint.spec, wanted, kv, max_memory, context)
    if slow := first.slow_here(quantization.describe().get("experts", "")):
        tell(slow)
    with ExitStack() as stack:
        with progress("steps") as steps:
            made = stack.enter_context(tuned(checkpoint, wanted, tuning, steps))
        if made.warning:
            tell(made.warning)
        # With bits assigned:
        memory = plan_memory(checkpoint.spec, made.options, kv, max_memory, context)
        if dry_run:
            done = summary(plan(checkpoint, made.options))
        else:
            with progress("bytes") as written:
                ending = finish(made.options, memory)
                done = export(checkpoint, made.options, folder, written, ending)
        advice = recommend(first, checkpoint.expert_format, made.options.quantization)
    if mute := chat_warning(checkpoint):
        tell(mute)  # last, where it is seen
    done |= {"warnings": warned} if warned else {}
    done |= figures(made.assignment) | ({"recommendation": advice} if advice else {})
    return Exported(folder, done, made.assignment, memory)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
