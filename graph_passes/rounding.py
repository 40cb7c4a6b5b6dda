"""How float weights become codes: rtn, search or gptq, the last two with what calibration saw.

rtn     each weight to its nearest code, the block's largest magnitude at the end of the range
search  scale and sign of each block by least squared error; with statistics, each input channel's
        error weighs as much as the channel's second moment
gptq    search, then the error of each input channel is made up for in the channels to come
        (Frantar et al., arXiv 2210.17323), by the inputs' correlations
Sizes are the same for all three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from gptoss_onnx.graph_passes.blockwise import Float32, UInt8, quantize_blocks, round_to_nearest
from gptoss_onnx.graph_passes.gptq import Gptq
from gptoss_onnx.graph_passes.quantization import Format
from gptoss_onnx.graph_passes.weight_role import WeightRole, find_role
from gptoss_onnx.runtimes.errors import UserError

METHODS = ("rtn", "search", "gptq")
Rounder = Callable[[Float32], tuple[UInt8, Float32]]


def rounding_name(role: WeightRole) -> str:
    """What `Statistics` and `Rounding` call a weight: q, k and v are one, and linears a module."""
    if role.group == "qkv":
        return f"{role.module}.qkv_proj"
    linear = role.group in ("o", "lm_head")
    return role.name.removesuffix(".weight") if linear else role.name


@dataclass(frozen=True)
class Statistics:
    """Sums over calibration tokens of what multiplies each weight, by its `rounding_name`.

    Those of experts have a leading expert axis, and count the tokens routed to each.
    """

    counts: Mapping[str, np.ndarray]  # tokens: [] or [E]
    moments: Mapping[str, Float32]  # x^2: [K] or [E, K]
    grams: Mapping[str, Float32] = field(default_factory=dict)  # x x^T: [K, K] or [E, K, K]
    shared: Mapping[str, Float32] = field(default_factory=dict)  # grams of all experts: [K, K]
    kv_max: Mapping[str, Float32] = field(default_factory=dict)  # "N.key": |x|, [kv_heads, D]

    @property
    def unrouted(self) -> tuple[int, int]:
        """Experts that saw no token, of all."""
        roles = {name: find_role(name) for name in self.counts}
        names = [name for name, role in roles.items() if role and role.part == "gate_up"]
        routed = [self.counts[name] for name in names]
        return sum(int((count == 0).sum()) for count in routed), sum(map(len, routed))


@dataclass(frozen=True)
class Rounding:
    """A method and, for what uses them, the statistics of a calibration."""

    method: str = "search"
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"no method {self.method!r}; there are {', '.join(METHODS)}")
        if self.method == "gptq" and self.statistics is None:
            raise UserError("--method gptq needs statistics of the inputs: give --calibrate FILE")

    def decodes(self, name: str, form: Format, expert: int) -> bool:
        """Whether an expert stored as MXFP4 is rounded from its values, not from its codes."""
        if form.bits != 4:
            return False
        return self.method == "rtn" or self._seen(name, expert) is not None

    def rounder(self, name: str, form: Format, expert: int | None = None) -> Rounder:
        """What turns rows [n, K] of the weight `name` into codes and scales (`quantize_blocks`)."""
        bits, block = form.bits, form.block
        if bits == 8:  # its error is a 250th of 4 bits': nothing to gain
            return lambda weight: quantize_blocks(weight, bits, block)
        if self.method == "rtn":
            return lambda weight: round_to_nearest(weight, block)
        moments = self._seen(name, expert)
        if moments is None:
            return lambda weight: quantize_blocks(weight, bits, block)
        if self.method == "gptq":
            return Gptq(self._gram(name, expert), block)
        return lambda weight: quantize_blocks(weight, bits, block, moments)

    def _seen(self, name: str, expert: int | None) -> Float32 | None:
        """Second moments [K] of what multiplies a weight; None where calibration saw nothing."""
        found = self.statistics.moments.get(name) if self.statistics else None
        if found is None:
            return None
        mine = found if expert is None else found[expert]
        return mine if mine.any() else None

    def _gram(self, name: str, expert: int | None) -> Float32:
        assert self.statistics is not None
        gram = self.statistics.grams[name]
        if expert is None:
            return gram
        share = BORROWED_TOKENS / max(self.statistics.counts[name].sum(), 1)
        return np.asarray(gram[expert] + np.float32(share) * self.statistics.shared[name])


BORROWED_TOKENS = 64  # of the average token of all experts, for one that saw few of its own
SEARCH = Rounding()
