"""A package against the full-precision portable graph of its checkpoint."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptoss_onnx.evaluation.parity import parity
from gptoss_onnx.evaluation.verify import not_run
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export_portable
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.package_update import write_report


def compare(folder: Path, checkpoint: str) -> dict[str, Any]:
    """Figures of the package against the portable graph of `checkpoint`, into its report.json.

    The portable graph is float32 and lives in a temporary folder beside the package meanwhile.
    """
    package = Package.open(folder)
    opened = open_checkpoint(checkpoint)
    source = package.manifest.source.get("name")
    if opened.name != source:
        raise UserError(f"{folder}: was made from {source}, not from {opened.name}")
    if missing := not_run(folder):
        provider = missing[package.manifest.graph]
        raise UserError(f"{folder}: what it computes can be compared where there is {provider}")
    with tempfile.TemporaryDirectory(prefix=".portable.", dir=folder.absolute().parent) as scratch:
        portable = export_portable(opened, Path(scratch) / "portable")
        figures = asdict(parity(package, portable))
    write_report(folder, {"parity": figures})
    return figures
