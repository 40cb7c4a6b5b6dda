"""What each group of tensors and each layer costs by itself: KL divergence, one at a time.

The weights are the package's own, whatever rounded them, put back into the float32 portable graph
while everything else stays float: no kernel's arithmetic is in the figures, weights alone. Experts
that are exact (MXFP4 as it is, or in int8 blocks of 32) cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_onnx.evaluation.graph_runner import GraphRunner, open_model
from gptoss_onnx.evaluation.package_graph import load_graph
from gptoss_onnx.evaluation.probe import Probe, probed
from gptoss_onnx.evaluation.reference import Progress, Reference
from gptoss_onnx.evaluation.scoring import score
from gptoss_onnx.evaluation.statistics import interval
from gptoss_onnx.evaluation.texts import Passage
from gptoss_onnx.evaluation.units import (
    DOWN,
    EMBEDDING,
    GATE_UP,
    Float,
    Stream,
    dequantized,
    units,
    with_weights,
)
from gptoss_onnx.export.plan import GRAPH
from gptoss_onnx.graph_passes.quantization import PRESETS, Format
from gptoss_onnx.graph_passes.scale_residual import RESIDUAL_SCALE, writes_residual
from gptoss_onnx.graph_passes.weight_role import read_role
from gptoss_onnx.graph_passes.weights import CHUNK_BYTES
from gptoss_onnx.runtimes.manifest import Manifest

TOKENS = 2000  # that count, unless told otherwise
KV_CHUNK = 8  # tokens: those of one feed see each other unrounded
_QKV = ("q_proj", "k_proj", "v_proj")
_PARTS = {"experts gate-up": GATE_UP, "experts down": DOWN}


def sensitivity(
    package: Path,
    portable: Path,
    passages: Sequence[Passage],
    expected: Reference,
    progress: Progress,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Rows of report.json: groups from the costliest to the cheapest, then layers in order.

    `expected` is the reference over `passages`.
    """
    manifest = Manifest.load(package)
    # A recipe names every group; the preset only completes one that was cut short.
    quantization = PRESETS[manifest.quant].changed(manifest.recipe)
    weights = PackageWeights(package / manifest.graph, portable / GRAPH)
    groups: dict[str, dict[str, Format]] = {}
    layers: dict[str, dict[str, Format]] = {}
    for unit in units(expected.layers):
        form = quantization.of(unit.group, unit.layer)
        for name in unit.weights:
            group = next((g for g, part in _PARTS.items() if name.endswith(part)), unit.group)
            groups.setdefault(group, {})[name] = form
            if unit.layer is not None:
                layers.setdefault(str(unit.layer), {})[name] = form
    measured: dict[str, list[dict[str, Any]]] = {"group": [], "layer": []}
    parts = [("group", groups), ("layer", layers)]
    total, done = len(groups) + len(layers), 0
    for what, named in parts:
        for name, forms in named.items():
            streams = {
                weight: weights.stream(weight, form)
                for weight, form in forms.items()
                if form.kind != "float"
            }
            cost: dict[str, Any] = {"mean": 0.0, "ci": [0.0, 0.0]}
            if streams:
                with with_weights(portable, streams, threads) as probe:
                    tokens = score(probe, passages, expected, lambda *_: None)
                cost = interval(tokens.passage, tokens.kld)
            done += 1
            progress("sensitivity", done, total)
            texts = dict.fromkeys(str(form) for form in forms.values())
            row = {"what": what, "name": name, "kld": cost["mean"], "ci": cost["ci"]}
            measured[what].append({**row, "format": ", ".join(texts)})
    if manifest.kv.dtype == "int8":
        tokens = score(_int8_kv(portable, weights, threads), passages, expected, lambda *_: None)
        cost = interval(tokens.passage, tokens.kld)
        row = {"what": "group", "name": "KV cache", "kld": cost["mean"], "ci": cost["ci"]}
        measured["group"].append({**row, "format": "int8"})
    return sorted(measured["group"], key=lambda row: -row["kld"]) + measured["layer"]


def _int8_kv(portable: Path, weights: PackageWeights, threads: int | None) -> Probe:
    """The portable graph, whose keys and values are rounded to the package's int8 between feeds."""

    def store(name: str, kv: Float) -> Float:
        _, layer, part = name.split(".")
        scale = weights.array(f"model.layers.{layer}.self_attn.{part}_scale")
        return np.asarray(np.clip(np.rint(kv / scale), -128, 127) * scale, np.float32)

    model = probed(ir.load(portable / GRAPH))
    session = open_model(model, portable, threads or 0)
    return Probe(GraphRunner(session, store=store), KV_CHUNK)


class PackageWeights:
    """A package's quantized weights as float32, by their names and shapes in the portable graph."""

    def __init__(self, graph: Path, portable: Path) -> None:
        self._values = load_graph(graph.parent, graph.name).graph.initializers
        scaled = RESIDUAL_SCALE in self._values
        self._residual = np.float32(self.array(RESIDUAL_SCALE) if scaled else 1)
        values = ir.load(portable).graph.initializers.values()
        self._shapes = {str(v.name): v.shape.numpy() for v in values if v.shape is not None}

    def stream(self, name: str, form: Format) -> Stream:
        """The float32 rows of `name`, which the package keeps in `form`."""
        width, rows = self._shapes[name][-1], slice(None)
        stem, _, last = name.rpartition(".")
        if last in ("gate_up_proj", "down_proj"):
            packed, scales = f"{name}_{str(form).partition(':')[0]}", f"{name}_scales"
        elif name == EMBEDDING:
            packed, scales = f"{name}_q{form.bits}", f"{name}_scales"
        else:
            module, _, projection = stem.rpartition(".")
            if projection in _QKV:  # their rows are one weight in a package
                parts = _QKV[: _QKV.index(projection)]
                start = sum(self._shapes[f"{module}.{part}.weight"][0] for part in parts)
                rows, stem = slice(start, start + self._shapes[name][0]), f"{module}.qkv_proj"
            packed, scales = f"{stem}.weight_q{form.bits}", f"{stem}.scales"
        chunks = partial(self._chunks, packed, scales, form, width, rows)
        if not writes_residual(read_role(name)):
            return chunks
        return lambda: (chunk / self._residual for chunk in chunks())

    def _chunks(
        self, packed: str, scales: str, form: Format, width: int, rows: slice
    ) -> Iterator[Float]:
        codes, steps = self.array(packed)[rows], self.array(scales)[rows]
        codes = codes.reshape(-1, int(np.prod(codes.shape[steps.ndim - 1 :])))
        steps = steps.reshape(-1, steps.shape[-1])
        step = max(1, CHUNK_BYTES // (4 * width))
        for start in range(0, len(steps), step):
            part = slice(start, start + step)
            yield dequantized(np.asarray(codes[part]), np.asarray(steps[part]), form, width)

    def array(self, name: str) -> NDArray[Any]:
        tensor = self._values[name].const_value
        assert tensor is not None
        return tensor.numpy()
