"""An evaluation's figures where people and programs look for them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from gptoss_onnx.evaluation.reference import Reference
from gptoss_onnx.evaluation.report import render
from gptoss_onnx.export.model_card import measured
from gptoss_onnx.runtimes.package_files import inside
from gptoss_onnx.runtimes.package_update import REPORT, read_report, update_files

REPORT_HTML = "report.html"


def record(
    package: Path, figures: dict[str, Any], reference: Reference, report: Path | None
) -> None:
    """Into the package (report.json, report.html, model card), the cache, and a folder if wanted.

    Figures of other packages measured against the same reference go into the page beside them.
    """
    others = _keep(reference, package.resolve().name, figures)
    page = render(package.resolve().name, figures, others)
    texts = {REPORT: _text({**read_report(package), "evaluation": figures}), REPORT_HTML: page}
    card = package / "README.md"
    if card.is_file() and inside(package, card):  # a package does without
        texts[card.name] = measured(card.read_text(encoding="utf-8", errors="replace"), figures)
    update_files(package, texts)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        (report / REPORT_HTML).write_text(page, encoding="utf-8")
        (report / "report.json").write_text(_text(figures), encoding="utf-8")


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that fit on a screen."""
    total, agreement = figures["all"], [r["mean"] for r in figures["router_agreement"]]
    low, high = total["kld"]["ci"]
    rows = {
        "tokens": f"{total['tokens']:,} of {figures['text']['name']}",
        "KL divergence": f"{total['kld']['mean']:.3g} nats ({low:.2g} to {high:.2g})",
        "KL p99, max": f"{total['kld']['p99']:.3g}, {total['kld']['max']:.3g}",
        "top-1": f"{total['top1']['mean']:.2%}",
        "perplexity": f"{total['perplexity']['package']:.4g}, "
        f"{total['perplexity']['ratio']:.4f} of the source's",
        "delta p, RMS": f"{total['delta_p']['rms']:.3%}",
        "router agreement": f"{sum(agreement) / len(agreement):.2%}, least {min(agreement):.2%}",
    }
    if "generation" in figures:
        asked = figures["generation"]
        rows["exact answers"] = (
            f"{asked['exact']['package']:.1%} (source {asked['exact']['reference']:.1%}) "
            f"of {asked['questions']}"
        )
        rows["answers changed"] = f"{asked['flips']['mean']:.1%}"
        rows["well-formed"] = f"{asked['parsed']['package']:.1%}"
    for entry in figures.get("sensitivity", ()):
        rows[f"{entry['name']} in {entry['format']}"] = f"{entry['kld']:.3g} nats"
    return rows


def _keep(expected: Reference, package: str, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Put `figures` beside the reference; gives those of the other packages measured there."""
    expected.results.mkdir(exist_ok=True)
    form = json.dumps([figures["quant"], figures["recipe"], figures["method"], figures["kv"]])
    name, digest = re.sub(r"[^-.A-Za-z0-9]", "_", package), hashlib.sha256(form.encode())
    path = expected.results / f"{name}-{digest.hexdigest()[:8]}.json"
    partial = path.with_suffix(f".{os.getpid()}")  # what is killed here leaves no half file to read
    partial.write_text(_text({"package": package, **figures}), encoding="utf-8")
    partial.replace(path)
    others = [other for other in sorted(expected.results.glob("*.json")) if other != path]
    return [json.loads(other.read_text(encoding="utf-8")) for other in others]


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
