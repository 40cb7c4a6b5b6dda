"""Is a package what it says: its bytes, its kernels, that it runs, and that it computes right."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from gptoss_onnx.runtimes.manifest import Manifest, graph_files
from gptoss_onnx.runtimes.ort_file import ORT, ort_nodes
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.package_files import check_files
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.target import known_target


def verify(folder: Path, progress: Callable[[int], None]) -> list[str]:
    """What is wrong with a package, a line each: its bytes, else its kernels and a run."""
    problems = check_files(folder, progress)
    if problems:
        return problems
    checked = can_check_kernels(folder)
    for name in graph_files(folder):
        problems += [*(_kernels(folder, name) if checked else []), *_runs(folder, name)]
    return problems


def can_check_kernels(folder: Path) -> bool:
    """Whether onnx_ir is here to read graphs with, which the runtime alone does without, and a
    table of each graph's target."""
    manifests = (Manifest.load(folder, graph) for graph in graph_files(folder))
    tables = (known_target(m.target, m.min_runtime) for m in manifests)
    return importlib.util.find_spec("onnx_ir") is not None and None not in tables


def operators(folder: Path, graph: str) -> Counter[str]:
    """How many nodes of each operator one graph of a package has."""
    if graph.endswith(ORT):
        with ort_nodes(folder / graph) as found:
            return Counter(node.op_type for node in found)
    from gptoss_onnx.evaluation.package_graph import load_graph

    return Counter(node.op_type for node in load_graph(folder, graph).graph.all_nodes())


def _kernels(folder: Path, graph: str) -> list[str]:
    """Nodes that the target's table refuses."""
    manifest = Manifest.load(folder, graph)
    target = known_target(manifest.target, manifest.min_runtime)
    assert target is not None  # `can_check_kernels`
    if graph.endswith(ORT):
        with ort_nodes(folder / graph) as kept:
            whys = ((node.name, node.refusal(target)) for node in kept)
            return [f"{graph}: {name}: {why}" for name, why in whys if why]
    from gptoss_onnx.evaluation.package_graph import load_graph
    from gptoss_onnx.graph_passes.verify_target import refusal

    nodes = load_graph(folder, graph).graph.all_nodes()
    found = ((node.name or node.op_type, refusal(node, target)) for node in nodes)
    return [f"{graph}: {name}: {why}" for name, why in found if why]


def not_run(folder: Path) -> dict[str, str]:
    """The provider each graph needs that nothing here can run."""
    manifests = [Manifest.load(folder, graph) for graph in graph_files(folder)]
    return {m.graph: str(m.session["providers"][0]) for m in manifests if not providers_here(m)}


def providers_here(manifest: Manifest) -> list[str]:
    """Where a graph runs here: on the CPU where its device is not here. None where that cannot."""
    available = onnxruntime.get_available_providers()
    if there := [name for name in manifest.session["providers"] if name in available]:
        return there
    return ["CPUExecutionProvider"] if cpu_stands_in(manifest) else []


def cpu_stands_in(manifest: Manifest) -> bool:
    """Whether the CPU computes a graph: it casts float16, but has no bfloat16 and reads MXFP4 only
    as it is stored."""
    target = known_target(manifest.target, manifest.min_runtime)
    by_column = (target and target.fp4_by_column) and "mxfp4" in manifest.recipe.values()
    return manifest.activations != "bfloat16" and not by_column


def _runs(folder: Path, graph: str) -> list[str]:
    providers = providers_here(Manifest.load(folder, graph))
    if not providers:
        return []
    logits = Session(Package.open(folder, providers=providers, graph=graph)).feed([0, 1, 2])
    if not np.isfinite(logits).all():
        return [f"{graph}: its logits are not finite"]
    return []
