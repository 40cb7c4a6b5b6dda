"""A recipe within a budget, and recipes given back: JSON, a manifest.json, or a package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gptoss_onnx.evaluation.reference import Progress
from gptoss_onnx.evaluation.texts import Text
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.plan import Options, plan, summary
from gptoss_onnx.graph_passes.quantization import GROUPS, INT4, PRESETS, Quantization, uniform
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.json_file import read_json
from gptoss_onnx.tuning.assign import (
    Assignment,
    assign,
    check_budget,
    parse_size,
)
from gptoss_onnx.tuning.calibration import read_calibration
from gptoss_onnx.tuning.costs import measure, sizes

CALIBRATION = "evaluation/calibration.jsonl"


def read_recipe(path: Path, preset: str) -> Quantization:
    """The quantization that `path` describes.

    A manifest's preset is its own; a bare mapping changes `preset`. UserError for what is neither.
    """
    file = path / "manifest.json" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{file}: no such file; give a recipe, a manifest or a package")
    content = read_json(file)
    if isinstance(content.get("recipe"), dict):
        preset, content = content.get("quant", preset), content["recipe"]
    if not content or not all(isinstance(text, str) for text in (preset, *content.values())):
        raise UserError(f'{file}: not a recipe; give JSON such as {{"{GROUPS[0]}": "int8:64"}}')
    return Quantization.recorded(preset, content, file)


def within(
    checkpoint: Checkpoint,
    options: Options,
    text: Path | None,
    *,
    bits: float | None = None,
    size: str | None = None,
    progress: Progress,
) -> tuple[Quantization, Assignment]:
    """The assignment for `bits` per weight, or for `size` of the package's data, and its recipe.

    `text` is what sensitivities are measured on, by default the checkpoint's calibration text.
    """
    base = PRESETS["int4"]
    chosen = Text.read(text) if text else Text.beside(checkpoint, CALIBRATION)
    if chosen is None:
        raise UserError(
            f"{checkpoint.place}: no {CALIBRATION}; give a text to measure on with --calibrate FILE"
        )
    _, _, weights = sizes(checkpoint)
    if bits is not None:
        budget, wanted, rest = int(bits * weights / 8), f"--bits-per-weight {bits:g}", 0
    else:
        made = plan(checkpoint, replace(options, quantization=uniform("int4", INT4)))
        rest = summary(made)["written_bytes"] - weights * 5 // 8  # int4:32 is 5 bits a weight
        budget, wanted = parse_size(str(size)) - rest, f"--size {size}"
    check_budget(checkpoint, budget, wanted, rest)
    passages = read_calibration(chosen, checkpoint)
    costs = measure(checkpoint, passages, options.rounding, progress)
    found = assign(costs, budget, wanted)
    return base.changed(found.recipe), found
