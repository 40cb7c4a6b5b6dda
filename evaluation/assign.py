"""Mixed precision by measurement: a format for each unit, within a budget of bytes.

What a unit costs at int4:32 is measured (KL divergence, it alone quantized); other formats cost
that times the ratio of their squared rounding errors. Costs are taken to add up, which ignores how
errors of several units meet: the sum ranks assignments, it does not foretell a package's KL.

The choice is exact, by dynamic programming over sizes in steps of a 16384th of the largest: with a
hundred units it takes a moment, where greedy steps leave much of a small budget unused, and more
budget never predicts more KL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from evaluation.reference import Progress, portable_graph, reference
from evaluation.scoring import score
from evaluation.texts import Passage
from evaluation.units import Float, Stream, Unit, dequantized, subset, units, with_weights
from export.binding import bind
from export.checkpoint import Checkpoint
from export.trace import trace
from graph_passes import mxfp4
from graph_passes.blockwise import dequantize_blocks, quantize_blocks
from graph_passes.expert_weights import packed_experts
from graph_passes.quantization import INT4, Format
from graph_passes.quantize_rows import quantized_rows
from graph_passes.rounding import Rounding
from graph_passes.weights import ExpertWeight, FloatWeight, as_float32
from runtimes.errors import UserError

FORMATS = tuple(Format("int", bits, block) for bits in (4, 8) for block in (16, 32, 64, 128))
TOKENS = 2000  # of the calibration text that count
_SAMPLED_ROWS, _SAMPLED_EXPERTS = 256, 4  # whose rounding errors stand for a weight's
_STEPS = 1 << 14
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", re.IGNORECASE)


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


@dataclass(frozen=True)
class Assignment:
    chosen: Mapping[str, Choice]  # by recipe key
    weights: int

    @property
    def recipe(self) -> dict[str, str]:
        return {key: str(choice.form) for key, choice in self.chosen.items()}

    @property
    def size(self) -> int:
        return sum(choice.size for choice in self.chosen.values())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size / self.weights

    @property
    def kld(self) -> float:
        return sum(choice.kld for choice in self.chosen.values())

    def rows(self) -> list[dict[str, str]]:
        """For a table: a layer a row."""
        layers = sorted({int(key.split(".")[1]) for key in self.chosen if "." in key})
        recipe = self.recipe
        parts = ("qkv", "o", "experts")
        empty = {"embedding": "", "lm_head": ""}
        rows = [
            {"layer": str(n), **{p: recipe[f"layers.{n}.{p}"] for p in parts}, **empty}
            for n in layers
        ]
        outside = {part: recipe[part] for part in ("embedding", "lm_head")}
        return [*rows, {"layer": "-", **dict.fromkeys(parts, ""), **outside}] if rows else [outside]


def parse_size(text: str) -> int:
    """Bytes of 12GB, 9.5MB or 800000; UserError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--size {text}: write a size as in 12GB or 9.5MB")
    return round(float(match[1]) * 1000.0 ** " KMGT".index(match[2].upper() or " "))


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


def assign(costs: Costs, size: int, wanted: str) -> Assignment:
    """The choice of least predicted KL within `size` bytes.

    UserError, naming `wanted`, where no choice is as small, or as large. Bytes that would not
    lower the predicted KL are not used.
    """
    smallest = sum(min(c.size for c in one) for one in costs.choices.values())
    largest = sum(max(c.size for c in one) for one in costs.choices.values())
    _check(size, smallest, largest, costs.total_weights, wanted, 0)
    step = max(1, largest // _STEPS)
    base = {key: min(c.size for c in one) for key, one in costs.choices.items()}
    capacity = min(size - smallest, largest - smallest) // step
    best: NDArray[np.float64] = np.zeros(capacity + 1)
    picks: list[NDArray[np.int64]] = []
    for key, options in costs.choices.items():
        tried = np.full((len(options), capacity + 1), np.inf)
        for place, option in enumerate(options):
            more = -(-(option.size - base[key]) // step)
            if more <= capacity:
                tried[place, more:] = best[: capacity + 1 - more] + option.kld
        picks.append(tried.argmin(0))
        best = tried.min(0)
    chosen: dict[str, Choice] = {}
    left = capacity
    for (key, options), pick in reversed(list(zip(costs.choices.items(), picks, strict=True))):
        chosen[key] = options[pick[left]]
        left -= -(-(chosen[key].size - base[key]) // step)
    ordered = {key: chosen[key] for key in costs.choices}
    return Assignment(ordered, costs.total_weights)


def quantized_weights(checkpoint: Checkpoint) -> int:
    """How many weights have a format."""
    bound = _bound(checkpoint)
    return sum(_count(unit, bound) for unit in units(checkpoint.spec.num_layers))


def check_budget(checkpoint: Checkpoint, size: int, wanted: str, rest: int = 0) -> None:
    """UserError where `size` bytes are out of reach; reads no weight.

    `rest` is what a package's data holds beside quantized weights, for the message.
    """
    bound = _bound(checkpoint)
    found = units(checkpoint.spec.num_layers)
    sizes = [_sizes([bound[name] for name in unit.weights]).values() for unit in found]
    weights = sum(_count(unit, bound) for unit in found)
    _check(size, sum(map(min, sizes)), sum(map(max, sizes)), weights, wanted, rest)


def _bound(checkpoint: Checkpoint) -> dict[str, ir.TensorProtocol | None]:
    """The portable graph's weights by name, unread."""
    model = trace(checkpoint.spec)
    bind(model, checkpoint)
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def _check(size: int, smallest: int, largest: int, weights: int, wanted: str, rest: int) -> None:
    for wrong, word, limit in (
        (size < smallest, "small: the least", smallest),
        (size > largest, "large: the most", largest),
    ):
        if wrong:
            raise UserError(
                f"{wanted} is too {word} is {8 * limit / weights:.4g} bits per weight, "
                f"{(limit + rest) / 1e6:.4g} MB"
            )


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
            moments = _moments(rounding, str(weight.name), None)
            total += _squared(rows, _recoded(rows, form, moments), moments) * count / len(rows)
    return total


def _expert_error(weight: ExpertWeight, expert: int, form: Format, rounding: Rounding) -> float:
    stored = weight.source.read(expert)
    if isinstance(stored, tuple) and form.bits == 8 and form.block == mxfp4.BLOCK:
        return 0.0  # `mxfp4.to_int8` is exact
    values = mxfp4.decode(*stored) if isinstance(stored, tuple) else stored
    rows = as_float32(values[:_SAMPLED_ROWS])
    moments = _moments(rounding, str(weight.name), expert)
    error = _squared(rows, _recoded(rows, form, moments), moments)
    return error * len(values) / len(rows)


def _moments(rounding: Rounding, name: str, expert: int | None) -> Float | None:
    if rounding.statistics is None:
        return None
    found = rounding.statistics.moments.get(rounding_name(name))
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


def rounding_name(name: str) -> str:
    """What `Rounding` calls the weight `name` of the portable graph."""
    stem = name.removesuffix(".weight")
    module, _, last = stem.rpartition(".")
    if last in ("q_proj", "k_proj", "v_proj"):
        return f"{module}.qkv_proj"
    return name if last == "embed_tokens" else stem


def _rounded(weight: ir.TensorProtocol | None, form: Format, rounding: Rounding) -> Stream:
    return partial(_recode, weight, form, rounding)


def _recode(weight: ir.TensorProtocol | None, form: Format, rounding: Rounding) -> Iterator[Float]:
    """What export would write of a weight, as float32."""
    if isinstance(weight, ExpertWeight):
        pair = packed_experts(weight, form, rounding)
    else:
        assert isinstance(weight, FloatWeight)
        pair = quantized_rows(weight, form, rounding.rounder(rounding_name(str(weight.name)), form))
    width = weight.shape.numpy()[-1]
    codes = list(pair.packed.chunks())  # the scales come after the codes
    for packed, scales in zip(codes, pair.scales.chunks(), strict=True):
        yield dequantized(packed, scales, form, width)
