"""What each group of tensors and each layer costs by itself: KL divergence, one at a time.

The weights are the package's own, whatever rounded them, put back into the float32 portable graph
while everything else stays float: no kernel's arithmetic is in the figures, weights alone. Experts
that are exact (MXFP4 as it is, or in int8 blocks of 32) cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.evaluation.graph_runner import GraphRunner, open_model
from gptoss_onnx.evaluation.package_graph import load_graph, load_portable
from gptoss_onnx.evaluation.probe import Probe, probed
from gptoss_onnx.evaluation.reference import Progress, Reference
from gptoss_onnx.evaluation.scoring import score
from gptoss_onnx.evaluation.statistics import interval
from gptoss_onnx.evaluation.texts import Passage
from gptoss_onnx.evaluation.units import (
    Float,
    Stream,
    dequantized,
    units,
    with_weights,
)
from gptoss_onnx.export.plan import GRAPH
from gptoss_onnx.graph_passes.lower_attention import scale_in_query
from gptoss_onnx.graph_passes.quantization import Format, Quantization
from gptoss_onnx.graph_passes.quantize_kv import kv_scale
from gptoss_onnx.graph_passes.rounding import rounding_name
from gptoss_onnx.graph_passes.scale_residual import RESIDUAL_SCALE, writes_residual
from gptoss_onnx.graph_passes.weight_role import WeightRole, role_of
from gptoss_onnx.graph_passes.weights import CHUNK_BYTES
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST, Manifest

TOKENS = 2000  # that count, unless told otherwise
KV_CHUNK = 8  # tokens: those of one feed see each other unrounded
_QKV = ("q", "k", "v")
_PARTS = {"gate_up": "experts gate-up", "down": "experts down"}


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
    quantization = recorded(package)
    weights = PackageWeights(package / manifest.graph, portable / GRAPH)
    groups: dict[str, dict[str, Format]] = {}
    layers: dict[str, dict[str, Format]] = {}
    for unit in units(expected.layers):
        form = quantization.of(unit.group, unit.layer)
        for role in unit.roles:
            groups.setdefault(_PARTS.get(role.part, unit.group), {})[role.name] = form
            if unit.layer is not None:
                layers.setdefault(str(unit.layer), {})[role.name] = form
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


def recorded(package: Path) -> Quantization:
    """The formats of a package's weights; UserError where they are not known here."""
    manifest = Manifest.load(package)
    return Quantization.recorded(manifest.quant, manifest.recipe, package / MANIFEST)


def _int8_kv(portable: Path, weights: PackageWeights, threads: int | None) -> Probe:
    """The portable graph, whose keys and values are rounded to the package's int8 between feeds."""

    def store(role: WeightRole, kv: Float) -> Float:
        scale = weights.array(kv_scale(role))
        return np.asarray(np.clip(np.rint(kv / scale), -128, 127) * scale, np.float32)

    model = probed(load_portable(portable / GRAPH))
    session = open_model(model, portable, threads or 0)
    return Probe(GraphRunner(session, store=store), KV_CHUNK)


class PackageWeights:
    """A package's quantized weights as float32, by their names and shapes in the portable graph."""

    def __init__(self, graph: Path, portable: Path) -> None:
        self._graph = graph
        lowered = load_graph(graph.parent, graph.name).graph
        self._values = lowered.initializers
        scaled = RESIDUAL_SCALE in self._values
        self._residual = np.float32(self.array(RESIDUAL_SCALE) if scaled else 1)
        traced = load_portable(portable).graph
        self._portable = traced.initializers
        self._query = np.float32(scale_in_query(traced, lowered))

    def stream(self, name: str, form: Format) -> Stream:
        """The float32 rows of `name`, which the package keeps in `form`."""
        role, width, rows = role_of(self._portable[name]), self._shape(name)[-1], slice(None)
        if role.group == "experts":
            packed, scales = f"{name}_{str(form).partition(':')[0]}", f"{name}_scales"
        elif role.group == "embedding":
            packed, scales = f"{name}_q{form.bits}", f"{name}_scales"
        else:
            stem = rounding_name(role)
            if role.group == "qkv":  # their rows are one weight in a package
                parts = _QKV[: _QKV.index(role.part)]
                start = sum(self._shape(replace(role, part=part).name)[0] for part in parts)
                rows = slice(start, start + self._shape(name)[0])
            packed, scales = f"{stem}.weight_q{form.bits}", f"{stem}.scales"
        chunks = partial(self._chunks, packed, scales, form, width, rows)
        if role.part == "q":
            return lambda: (chunk / self._query for chunk in chunks())
        if writes_residual(role):
            return lambda: (chunk / self._residual for chunk in chunks())
        return chunks

    def _chunks(
        self, packed: str, scales: str, form: Format, width: int, rows: slice
    ) -> Iterator[Float]:
        codes, steps = self.array(packed)[rows], self.array(scales)[rows]
        if 8 * codes.nbytes != steps.size * form.block * form.bits or len(codes) != len(steps):
            raise self._other(f"{packed} is not in {form}")
        codes = codes.reshape(-1, int(np.prod(codes.shape[steps.ndim - 1 :])))
        steps = steps.reshape(-1, steps.shape[-1])
        step = max(1, CHUNK_BYTES // (4 * width))
        for start in range(0, len(steps), step):
            part = slice(start, start + step)
            yield dequantized(np.asarray(codes[part]), np.asarray(steps[part]), form, width)

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._portable[name].shape
        assert shape is not None
        return shape.numpy()

    def array(self, name: str) -> NDArray[Any]:
        """UserError where the graph has no such weight."""
        if name not in self._values:
            raise self._other(f"there is no {name}")
        tensor = self._values[name].const_value
        assert tensor is not None
        return tensor.numpy()

    def _other(self, what: str) -> UserError:
        return UserError(
            f"{self._graph}: {what}, as {MANIFEST}'s quant and recipe have it; the graph is of "
            "another version or damaged: export the package again"
        )
