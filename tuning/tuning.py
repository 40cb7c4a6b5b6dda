"""What an export measures before it rounds: calibration, KV scales, an assignment of bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptoss_onnx.evaluation.reference import Progress
from gptoss_onnx.evaluation.texts import Text
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.plan import Options
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.tuning.assign import Assignment
from gptoss_onnx.tuning.calibration import Calibration, calibrated
from gptoss_onnx.tuning.recipe import CALIBRATION, read_recipe, within


@dataclass(frozen=True)
class Tuning:
    """The choices of one export. `text` is what it is calibrated with."""

    text: Path | None = None
    method: str | None = None  # None: gptq where there is a text, else search
    bits_per_weight: float | None = None
    size: str | None = None  # of the package's data, as 12GB

    @property
    def assigns(self) -> bool:
        return self.bits_per_weight is not None or self.size is not None


@dataclass(frozen=True)
class Tuned:
    options: Options
    assignment: Assignment | None
    warning: str | None


def formats(
    preset: str, changes: tuple[str, ...], recipe: Path | None, tuning: Tuning
) -> Quantization:
    """The preset with its changes, or the recipe; UserError when formats are chosen in two ways."""
    given = {
        "--bits-per-weight": tuning.bits_per_weight is not None,
        "--size": tuning.size is not None,
        "--recipe": recipe is not None,
    }
    names = [name for name, there in given.items() if there]
    if names and changes:
        names.append("--set")
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} each choose the formats: give one of them")
    if tuning.assigns and preset != "int4":
        raise UserError(f"{names[0]} assigns 4 and 8 bits by itself: leave --quant {preset} out")
    return read_recipe(recipe, preset) if recipe else Quantization.parse(preset, changes)


@contextmanager
def tuned(
    checkpoint: Checkpoint, options: Options, tuning: Tuning, progress: Progress
) -> Iterator[Tuned]:
    """`options` with all that `tuning` asks for; statistics are there until the context closes."""
    assignment: Assignment | None = None
    warning: str | None = None
    with ExitStack() as stack:

        def calibrate(text: Path | Text, grams: bool) -> Calibration:
            made = calibrated(text, checkpoint, grams=grams, progress=progress)
            return stack.enter_context(made)

        calibration: Calibration | None = None
        if tuning.text is not None and tuning.method != "rtn":  # which asks nothing of the inputs
            method = tuning.method or "gptq"
            calibration = calibrate(tuning.text, method == "gptq")
            rounding = Rounding(method, calibration.statistics)
            options = replace(options, rounding=rounding, calibration=calibration.described)
            warning = _unrouted(calibration, tuning.text)
        else:
            options = replace(
                options, rounding=Rounding(tuning.method) if tuning.method else SEARCH
            )
        if options.wants_int8_kv:
            text = tuning.text or Text.beside(checkpoint, CALIBRATION)
            if calibration is None and text is not None:
                calibration = calibrate(text, False)
            if calibration is not None:
                scales, described = calibration.statistics.kv_max, calibration.described
                options = replace(options, kv_max=scales, kv_calibration=described)
        if tuning.assigns:
            quantization, assignment = within(
                checkpoint,
                options,
                tuning.text,
                bits=tuning.bits_per_weight,
                size=tuning.size,
                progress=progress,
            )
            options = replace(options, quantization=quantization)
        yield Tuned(options, assignment, warning)


def kv_of(checkpoint: Checkpoint, options: Options, tuning: Tuning) -> str:
    """The KV cache that `tuned` will make: "int8" where there is a text to scale it by."""
    there = tuning.text is not None or checkpoint.text(CALIBRATION) is not None
    return "int8" if options.wants_int8_kv and there else "float"


def _unrouted(calibration: Calibration, text: Path) -> str | None:
    unrouted, experts = calibration.statistics.unrouted
    if not unrouted:
        return None
    return f"{text} routes nothing to {unrouted} of {experts} experts; they are rounded without it"


def figures(assignment: Assignment | None) -> dict[str, Any]:
    """What an assignment adds to an export's figures."""
    if assignment is None:
        return {}
    return {"bits_per_weight": assignment.bits_per_weight, "predicted_kld": assignment.kld}
