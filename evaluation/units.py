"""Units of quantization, and the portable graph with one of them quantized, all else in float.

A unit's weights pass through their codes and back to float32, a chunk at a time, into a temporary
file beside the graph: one unit is on the disk at a time, one weight's codes in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_onnx.evaluation.graph_runner import GraphRunner, open_model
from gptoss_onnx.evaluation.package_graph import load_portable
from gptoss_onnx.evaluation.probe import Probe, probed
from gptoss_onnx.evaluation.texts import Passage
from gptoss_onnx.export.plan import GRAPH
from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.blockwise import dequantize_blocks
from gptoss_onnx.graph_passes.quantization import Format, layer_key
from gptoss_onnx.graph_passes.weight_role import WeightRole

Float = NDArray[np.float32]
Stream = Callable[[], Iterator[Float]]
_LAYER_PARTS = {"qkv": ("q", "k", "v"), "o": ("o",), "experts": ("gate_up", "down")}
_ALIGNMENT = 64


@dataclass(frozen=True)
class Unit:
    """Weights that share one format; `key` is theirs in a recipe."""

    key: str
    group: str
    layer: int | None
    roles: tuple[WeightRole, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names in the portable graph."""
        return tuple(role.name for role in self.roles)


def units(num_layers: int) -> list[Unit]:
    """Embedding, lm_head, and qkv, o and experts of each layer."""
    found = [
        Unit(group, group, None, (WeightRole(None, group, "weight"),))
        for group in ("embedding", "lm_head")
    ]
    for layer in range(num_layers):
        for group, parts in _LAYER_PARTS.items():
            roles = tuple(WeightRole(layer, group, part) for part in parts)
            found.append(Unit(layer_key(layer, group), group, layer, roles))
    return found


def dequantized(packed: NDArray[Any], scales: NDArray[Any], form: Format, width: int) -> Float:
    """float32 [..., width] of codes as any kernel keeps them, blocks apart or in one row."""
    groups = scales.shape[-1]
    if form.kind == "mxfp4":
        return mxfp4.decode(packed.reshape(*scales.shape, 16), scales.view(np.uint8))
    flat = packed.reshape(*scales.shape[:-1], groups * form.block * form.bits // 8)
    return dequantize_blocks(flat, scales, form.bits, form.block, width)


@contextmanager
def with_weights(
    portable: Path, weights: Mapping[str, Stream], threads: int | None = None
) -> Iterator[Probe]:
    """A probe of the portable graph in the folder `portable` with other values of some weights."""
    model = load_portable(portable / GRAPH)
    with tempfile.NamedTemporaryFile(dir=portable, prefix="unit.") as data:
        for name, stream in weights.items():
            value = model.graph.initializers[name]
            assert value.const_value is not None
            data.write(bytes(-data.tell() % _ALIGNMENT))
            start = data.tell()
            for chunk in stream():
                data.write(np.ascontiguousarray(chunk, np.float32).data)
            size = data.tell() - start
            assert size == value.const_value.nbytes, f"{name}: {size} bytes"
            value.const_value = ir.ExternalTensor(
                Path(data.name).name,
                start,
                size,
                ir.DataType.FLOAT,
                shape=ir.Shape(value.const_value.shape.numpy()),
                name=name,
                base_dir=portable,
            )
        data.flush()
        yield Probe(GraphRunner(open_model(probed(model), portable, threads or 0)))


def subset(passages: Sequence[Passage], tokens: int) -> list[Passage]:
    """Whole passages drawn from everywhere in a text until `tokens` of theirs count."""
    chosen: list[int] = []
    found = 0
    for place in np.random.default_rng(0).permutation(len(passages)):
        if found >= tokens:
            break
        chosen.append(int(place))
        found += passages[place].tokens
    return [passages[place] for place in sorted(chosen)]
