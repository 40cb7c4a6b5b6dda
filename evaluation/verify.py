"""Is a package what it says: its bytes, its kernels, that it runs, and that it computes right."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from runtimes.package import Package, check_files
from runtimes.session import Session
from runtimes.target import get_target


def verify(folder: Path, progress: Callable[[int], None]) -> list[str]:
    """What is wrong with a package, a line each: its bytes, else its kernels and a run."""
    problems = check_files(folder, progress)
    if problems:
        return problems
    return [*(_kernels(folder) if can_check_kernels() else []), *_runs(folder)]


def can_check_kernels() -> bool:
    """Whether onnx_ir is here to read graphs with; the runtime alone does without it."""
    return importlib.util.find_spec("onnx_ir") is not None


def operators(folder: Path) -> Counter[str]:
    """How many nodes of each operator a package's graph has."""
    import onnx_ir as ir

    model = ir.load(folder / Package.open(folder).manifest.graph)
    return Counter(node.op_type for node in model.graph.all_nodes())


def _kernels(folder: Path) -> list[str]:
    """Nodes that the target's table refuses."""
    import onnx_ir as ir

    from graph_passes.verify_target import refusal

    manifest = Package.open(folder).manifest
    target = get_target(manifest.target)
    nodes = ir.load(folder / manifest.graph).graph.all_nodes()
    found = ((node.name or node.op_type, refusal(node, target)) for node in nodes)
    return [f"{manifest.graph}: {name}: {why}" for name, why in found if why]


def _runs(folder: Path) -> list[str]:
    package = Package.open(folder)
    logits = Session(package).feed([[0, 1, 2]])
    if not np.isfinite(logits).all():
        return [f"{package.manifest.graph}: its logits are not finite"]
    return []
