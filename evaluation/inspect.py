"""A package or a checkpoint in a few figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.evaluation.verify import operators
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.runtimes.manifest import MANIFEST, Manifest, graph_files


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
        **_graphs(folder),
        "weights": manifest.weights,
        "file_bytes": files,
        "total_bytes": sum(files.values()),
        "versions": manifest.versions,
    }


def _graphs(folder: Path) -> dict[str, Any]:
    """Each graph's operators; of several, the bytes of weights that each reads and all share."""
    names = graph_files(folder)
    counts = {name: dict(operators(folder, name).most_common()) for name in names}
    if len(names) == 1:
        return {"operators": counts[names[0]]}
    sizes, read = _read_bytes(folder, names)
    return {
        "graphs": {
            name: {
                "target": Manifest.load(folder, name).target,
                "operators": counts[name],
                "weight_bytes": int(sizes[mine].sum()),
                "own_bytes": int(sizes[mine & (read.sum(0) == 1)].sum()),
            }
            for name, mine in zip(names, read, strict=True)
        },
        "shared_bytes": int(sizes[read.all(0)].sum()),
    }


def _read_bytes(folder: Path, graphs: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Stretches of the data files: their sizes [n], and whether each graph reads them [graphs, n].

    One graph may read a tensor whole that another reads in parts.
    """
    places = [_stored(folder, name) for name in graphs]
    sizes, read = [], []
    for file in {file for found in places for file, *_ in found}:
        spans = [np.array([s for f, *s in sorted(found) if f == file]) for found in places]
        ends = np.unique(np.concatenate([span.reshape(-1) for span in spans]))
        opened = np.zeros((len(graphs), len(ends)), int)
        for row, span in zip(opened, spans, strict=True):
            for column, step in ((0, 1), (1, -1)):
                np.add.at(row, np.searchsorted(ends, span.reshape(-1, 2)[:, column]), step)
        sizes.append(np.diff(ends))
        read.append(opened.cumsum(1)[:, :-1] > 0)
    return np.concatenate(sizes), np.concatenate(read, 1)


def _stored(folder: Path, graph: str) -> set[tuple[str, int, int]]:
    """Where the weights of a graph lie: file, first byte, byte after the last."""
    import onnx_ir as ir

    from gptoss_onnx.evaluation.package_graph import load_graph

    model = load_graph(folder, graph)
    weights = (v.const_value for part in model.graphs() for v in part.initializers.values())
    return {
        (str(weight.location), weight.offset or 0, (weight.offset or 0) + (weight.length or 0))
        for weight in weights
        if isinstance(weight, ir.ExternalTensor)
    }


def _checkpoint(source: str) -> dict[str, Any]:
    checkpoint = open_checkpoint(source)
    views = checkpoint.tensors.values()
    size = Counter[str]()
    for view in views:
        size[view.dtype] += view.nbytes
    spec = checkpoint.spec
    layers = {
        "num_layers": spec.num_layers,
        "windows": [layer.window or "all" for layer in spec.attention],
        "global_tokens": max(layer.global_tokens for layer in spec.attention),
    }
    shape = {name: value for name, value in asdict(spec).items() if name != "attention"}
    return {
        "checkpoint": checkpoint.name,
        "revision": checkpoint.revision,
        "expert_format": checkpoint.expert_format,
        **layers,
        **shape,
        "tensors": len(checkpoint.tensors),
        "dtype_bytes": dict(size),
        "total_bytes": sum(size.values()),
    }
