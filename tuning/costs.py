"""What each unit costs in each format: bytes, and a prediction of its KL divergence.

What a unit costs at int4:32 is measured (KL divergence, it alone quantized); other formats cost
that times the ratio of their squared rounding errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from gptoss_onnx.evaluation.reference import Progress, portable_graph, reference
from gptoss_onnx.evaluation.scoring import score
from gptoss_onnx.evaluation.texts import Passage
from gptoss_onnx.evaluation.units import (
    Float,
    Stream,
    Unit,
    dequantized,
    subset,
    units,
    with_weights,
)
from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.trace import trace
from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.blockwise import dequantize_blocks, quantize_blocks
from gptoss_onnx.graph_passes.expert_weights import packed_experts
from gptoss_onnx.graph_passes.quantization import INT4, Format
from gptoss_onnx.graph_passes.quantize_rows import quantized_rows
from gptoss_onnx.graph_passes.rounding import Rounding, rounding_name
from gptoss_onnx.graph_passes.weight_role import WeightRole, role_of
from gptoss_onnx.graph_passes.weights import ExpertWeight, FloatWeight, as_float32

FORMATS = tuple(Format("int", bits, block) for bits in (4, 8) for block in (16, 32, 64, 128))
TOKENS = 2000  # of the calibration text that count
_SAMPLED_ROWS, _SAMPLED_EXPERTS = 256, 4  # whose rounding errors stand for a weight's


@dataclass(frozen=True)
class Choice:
    """One format a unit could have."""

    form: Format
    size: int  # bytes, scales included
    kld: float  # predicted nats


@dataclass(frozen=True)
class Costs:
    """Every unit's choices, and how many weights each has."""

    choices: Mapping[str, tuple[Choice, ...]]
    weights: Mapping[str, int]

    @property
    def total_weights(self) -> int:
        return sum(self.weights.values())


def measure(
    checkpoint: Checkpoint,
    passages: Sequence[Passage],
    rounding: Rounding,
    progress: Progress,
    tokens: int = TOKENS,
) -> Costs:
    """Costs of every unit over `tokens` of `passages`, which must not be the held-out text."""
    chosen = subset(passages, tokens)
    bound, found = _bound(checkpoint), units(checkpoint.spec.num_layers)
    choices: dict[str, tuple[Choice, ...]] = {}
    with portable_graph(checkpoint) as portable:
        expected = reference(checkpoint, chosen, lambda: portable, progress)
        for done, unit in enumerate(found, 1):
            streams = {name: _rounded(bound[name], INT4, rounding) for name in unit.weights}
            with with_weights(portable, streams) as probe:
                kld = float(score(probe, chosen, expected, lambda *_: None).kld.mean())
            weights = [bound[name] for name in unit.weights]
            choices[unit.key] = _choices(weights, kld, rounding)
            progress("sensitivity", done, len(found))
    return Costs(choices, {unit.key: _count(unit, bound) for unit in found})


def sizes(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Bytes of all quantized weights at least and at most, and how many there are; reads none."""
    bound, found = _bound(checkpoint), units(checkpoint.spec.num_layers)
    each = [_sizes([bound[name] for name in unit.weights]).values() for unit in found]
    count = sum(_count(unit, bound) for unit in found)
    return sum(map(min, each)), sum(map(max, each)), count


def _bound(checkpoint: Checkpoint) -> dict[str, ir.TensorProtocol | None]:
    """The portable graph's weights by name, unread."""
    model = trace(checkpoint.spec)
    bind(model, checkpoint)
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def _count(unit: Unit, bound: Mapping[str, ir.TensorProtocol | None]) -> int:
    tensors = (bound[name] for name in unit.weights)
    return sum(tensor.size for tensor in tensors if tensor is not None)


def _choices(
    weights: Sequence[ir.TensorProtocol | None], kld: float, rounding: Rounding
) -> tuple[Choice, ...]:
    measured = _error(weights, INT4, rounding)
    found = []
    for form, size in _sizes(weights).items():
        ratio = _error(weights, form, rounding) / measured if measured else 0.0
        found.append(Choice(form, size, kld * ratio))
    return tuple(sorted(found, key=lambda choice: choice.size))


def _sizes(weights: Sequence[ir.TensorProtocol | None]) -> dict[Format, int]:
    """Bytes of a unit in each format that all its weights can have."""
    found = {}
    for form in FORMATS:
        sizes = [_size(weight, form) for weight in weights]
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes):
            found[form] = sum(known)
    return found


def _size(weight: ir.TensorProtocol | None, form: Format) -> int | None:
    """Bytes of codes and scales; None where experts are not whole blocks."""
    assert weight is not None
    *rows, columns = weight.shape.numpy()
    if isinstance(weight, ExpertWeight) and columns % form.block:
        return None
    return int(np.prod(rows)) * -(-columns // form.block) * (form.block * form.bits // 8 + 4)


def _error(weights: Sequence[ir.TensorProtocol | None], form: Format, rounding: Rounding) -> float:
    """Squared rounding error of a sample of rows, by calibration's second moments if it has them.

    Sums over a unit's weights, each sample for its whole weight.
    """
    total = 0.0
    for weight in weights:
        if isinstance(weight, ExpertWeight):
            count = weight.source.shape[0]
            picked = range(0, count, -(-count // _SAMPLED_EXPERTS))
            for expert in picked:
                error = _expert_error(weight, expert, form, rounding)
                total += error * count / len(picked)
        else:
            assert isinstance(weight, FloatWeight)
            count = weight.shape.numpy()[0]
            rows = as_float32(weight.sources[0].read(0, min(count, _SAMPLED_ROWS)))
            moments = _moments(rounding, role_of(weight), None)
            total += _squared(rows, _recoded(rows, form, moments), moments) * count / len(rows)
    return total


def _expert_error(weight: ExpertWeight, expert: int, form: Format, rounding: Rounding) -> float:
    stored = weight.source.read(expert)
    if isinstance(stored, tuple) and form.bits == 8 and form.block == mxfp4.BLOCK:
        return 0.0  # `mxfp4.to_int8` is exact
    values = mxfp4.decode(*stored) if isinstance(stored, tuple) else stored
    rows = as_float32(values[:_SAMPLED_ROWS])
    moments = _moments(rounding, role_of(weight), expert)
    error = _squared(rows, _recoded(rows, form, moments), moments)
    return error * len(values) / len(rows)


def _moments(rounding: Rounding, role: WeightRole, expert: int | None) -> Float | None:
    if rounding.statistics is None:
        return None
    found = rounding.statistics.moments.get(rounding_name(role))
    if found is None or expert is None:
        return found
    return found[expert] if found[expert].any() else None


def _recoded(rows: Float, form: Format, moments: Float | None) -> Float:
    importance = moments if form.bits == 4 else None
    packed, scales = quantize_blocks(rows, form.bits, form.block, importance)
    return dequantize_blocks(packed, scales, form.bits, form.block, rows.shape[1])


def _squared(rows: Float, coded: Float, moments: Float | None) -> float:
    error = (rows - coded).astype(np.float64) ** 2
    return float((error if moments is None else error * moments).sum())


def _rounded(weight: ir.TensorProtocol | None, form: Format, rounding: Rounding) -> Stream:
    return partial(_recode, weight, form, rounding)


def _recode(weight: ir.TensorProtocol | None, form: Format, rounding: Rounding) -> Iterator[Float]:
    """What export would write of a weight, as float32."""
    if isinstance(weight, ExpertWeight):
        pair = packed_experts(weight, form, rounding)
    else:
        assert isinstance(weight, FloatWeight)
        pair = quantized_rows(weight, form, rounding.rounder(rounding_name(role_of(weight)), form))
    width = weight.shape.numpy()[-1]
    codes = list(pair.packed.chunks())  # the scales come after the codes
    for packed, scales in zip(codes, pair.scales.chunks(), strict=True):
        yield dequantized(packed, scales, form, width)
