"""Evaluated packages side by side, from their report.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptoss_onnx.evaluation import figures
from gptoss_onnx.evaluation.report import labelled, template
from gptoss_onnx.export.checkpoint import layout
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import Manifest
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.package_update import REPORT, read_report

NOT_MEASURED = "not measured"


def read(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Each package's evaluation with its `label` and `bits_per_weight`, and what keeps figures
    from being compared, a sentence each.

    An evaluation without "all" is of a package that was not evaluated. UserError for fewer than
    two packages, and for a folder that is none.
    """
    if len(folders) < 2:
        raise UserError("give at least two packages to compare")
    found = [_read(folder) for folder in folders]
    problems = [
        f"{one['package']}: {NOT_MEASURED}; gptoss eval {folder} --against CHECKPOINT does"
        for one, folder in zip(found, folders, strict=True)
        if "all" not in one
    ]
    measured = [one for one in found if "all" in one]
    for one in measured[1:]:
        first = measured[0]
        for what, here, there in (
            ("source", _source(one), _source(first)),
            ("text", one["text"]["sha256"], first["text"]["sha256"]),
        ):
            if here != there:
                problems.append(
                    f"{one['package']}: another {what} than {first['package']}'s; "
                    "their figures are not comparable"
                )
    return labelled(found), problems


def _check(evaluation: dict[str, Any], folder: Path) -> None:
    """UserError for figures of another shape than `evaluate` gives: a package's may be anyone's."""
    try:
        _row({**evaluation, "label": ""})
        if "all" in evaluation:
            _source(evaluation), evaluation["text"]["sha256"]
        if "speed" in evaluation:
            evaluation["speed"]["machine"]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / REPORT}: evaluation is not as this version writes it "
            f"({type(error).__name__}: {error}); gptoss eval {folder} --against CHECKPOINT "
            "writes it anew"
        ) from error


def _read(folder: Path) -> dict[str, Any]:
    package = Package.open(folder)
    manifest = package.manifest
    evaluation = read_report(folder).get("evaluation")
    made = {
        "quant": manifest.quant,
        "method": manifest.rounding.get("method", "search"),
        "size_bytes": sum(entry.size for entry in manifest.files.values()),
        **(evaluation if isinstance(evaluation, Mapping) else {}),
        "package": folder.resolve().name,
        "preset_recipe": False,  # here people know packages by their folders
        "bits_per_weight": bits_per_weight(manifest, package.config),
    }
    _check(made, folder)
    return made


def bits_per_weight(manifest: Manifest, config: Mapping[str, Any]) -> float:
    """Bits of all stored tensors, scales and tables included, by the checkpoint's parameters."""
    entries = layout(GptOssSpec.from_config(config), "dense")
    parameters = sum(math.prod(shape) for _, shape, _ in entries)
    stored = sum(manifest.weights.get(part, 0) for part in ("embedding", "experts", "dense"))
    return 8 * stored / parameters


def _source(evaluation: Mapping[str, Any]) -> tuple[Any, Any]:
    return evaluation["source"].get("name"), evaluation["source"].get("revision")


def rows(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table for the screen: a row a package; a list is a cell of several lines."""
    return [_row(one) for one in evaluations]


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "package": one["label"],
        "MB": f"{one['size_bytes'] / 1e6:,.1f}",
        "bits": f"{one['bits_per_weight']:.2f}",
    }
    measured, asked, speed = one.get("all"), one.get("generation"), one.get("speed")
    share, ratio = "{:.2%}".format, "{:.4f}".format
    row["KL, nats"] = row["top-1"] = row["ppl ratio"] = row["same experts"] = NOT_MEASURED
    if measured:
        kld, top1, perplexity = (measured[name] for name in ("kld", "top1", "perplexity"))
        row["KL, nats"] = _cell(kld["mean"], kld["ci"], "{:.3g}".format)
        row["top-1"] = _cell(top1["mean"], top1["ci"], share)
        row["ppl ratio"] = _cell(perplexity["ratio"], perplexity["ci"], ratio)
        agreement = [layer["mean"] for layer in one["router_agreement"]]
        row["same experts"] = share(sum(agreement) / len(agreement))
    row["exact"] = row["flips"] = row["tokens/s"] = NOT_MEASURED
    if asked:
        row["exact"], row["flips"] = (
            _cell(value, ci, "{:.1%}".format)
            for value, ci in (
                (asked["exact"]["package"], asked["exact"]["ci"]),
                (asked["flips"]["mean"], asked["flips"]["ci"]),
            )
        )
    if speed:
        row["tokens/s"] = f"{speed['decode_tokens_per_second']:,.0f}"
    return row


def _cell(value: float, ci: Sequence[float], form: Any) -> list[str]:
    return [form(value), f"{form(ci[0])}–{form(ci[1])}"]


def render(evaluations: Sequence[Mapping[str, Any]], problems: Sequence[str]) -> str:
    """One HTML file of the packages; those not evaluated are in `problems` alone."""
    shown = [one for one in evaluations if "all" in one]
    return template("comparison.html").render(
        names=[one["package"] for one in evaluations],
        all=shown,
        problems=problems,
        drawn=figures.presets(shown) if shown else None,
    )
