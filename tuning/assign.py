"""Mixed precision by measurement: a format for each unit, within a budget of bytes.

Costs are taken to add up, which ignores how errors of several units meet: the sum ranks
assignments, it does not foretell a package's KL.

The choice is exact, by dynamic programming over sizes in steps of a 16384th of the largest: with a
hundred units it takes a moment, where greedy steps leave much of a small budget unused, and more
budget never predicts more KL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.graph_passes.quantization import layer_key, read_key
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.tuning.costs import Choice, Costs, sizes

_STEPS = 1 << 14
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", re.IGNORECASE)


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
        known = (read_key(key) for key in self.chosen)
        layers = sorted({pair[1] for pair in known if pair and pair[1] is not None})
        recipe = self.recipe
        parts = ("qkv", "o", "experts")
        empty = {"embedding": "", "lm_head": ""}
        rows = [
            {"layer": str(n), **{p: recipe[layer_key(n, p)] for p in parts}, **empty}
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


def check_budget(checkpoint: Checkpoint, size: int, wanted: str, rest: int = 0) -> None:
    """UserError where `size` bytes are out of reach; reads no weight.

    `rest` is what a package's data holds beside quantized weights, for the message.
    """
    least, most, weights = sizes(checkpoint)
    _check(size, least, most, weights, wanted, rest)


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
