"""A package or a checkpoint in a few figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.verify import operators
from export.checkpoint import Checkpoint
from runtimes.package import MANIFEST, Manifest


def describe(path: str) -> dict[str, Any]:
    """Figures of the package in the folder `path`, or of the checkpoint there or on the hub."""
    return _package(Path(path)) if (Path(path) / MANIFEST).is_file() else _checkpoint(path)


def _package(folder: Path) -> dict[str, Any]:
    manifest = Manifest.load(folder)
    files = {name: entry.size for name, entry in manifest.files.items()}
    return {
        "package": manifest.name,
        "source": manifest.source,
        "target": manifest.target,
        "quant": manifest.quant,
        "recipe": manifest.recipe,
        "min_runtime": manifest.min_runtime,
        "context_length": manifest.context_length,
        "logits": manifest.logits,
        "windowed_kv_layers": sum(layer.windowed for layer in manifest.kv.layers),
        "operators": dict(operators(folder).most_common()),
        "weights": manifest.weights,
        "file_bytes": files,
        "total_bytes": sum(files.values()),
        "versions": manifest.versions,
    }


def _checkpoint(source: str) -> dict[str, Any]:
    checkpoint = Checkpoint.open(source)
    views = checkpoint.tensors.values()
    size = Counter[str]()
    for view in views:
        size[view.dtype] += view.nbytes
    return {
        "checkpoint": checkpoint.name,
        "revision": checkpoint.revision,
        "expert_format": checkpoint.expert_format,
        **asdict(checkpoint.spec),
        "tensors": len(checkpoint.tensors),
        "dtype_bytes": dict(size),
        "total_bytes": sum(size.values()),
    }
