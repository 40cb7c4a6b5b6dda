"""Rotary position embedding: what a config.json says of it, and its frequencies.

transformers 4 reads `rope_scaling` and `rope_theta`, transformers 5 those or its own
`rope_parameters`. What they read differently, or one of them refuses, is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.export.config_fields import flag, number, positive
from gptoss_onnx.export.safetensors_folder import show
from gptoss_onnx.runtimes.errors import UserError

DEFAULT_THETA = 150000.0
PLAIN = 'write "rope_scaling": {"rope_type": "default"} for plain RoPE'
YARN = 'leave it out for the YaRN GPT-OSS has by default, or name the type: "rope_type": "yarn"'


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding; `factor` 1 is plain RoPE, above 1 is YaRN (arXiv 2309.00071)."""

    theta: float
    factor: float = 1.0
    original_max_position: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False
    attention_factor: float = 1.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], max_position: int) -> RopeSpec:
        """Parse a config.json; UserError where transformers 4 and 5 do not agree on it."""
        table = _table(config)
        theta = _theta(config, table or {})
        if table is None:  # GptOssConfig's default in both
            return cls(theta, 32.0, attention_factor=_attention_factor(32.0))
        kind = _kind(table)
        for place in (config, table):
            if place.get("partial_rotary_factor", 1) != 1:
                raise UserError(
                    "config.json: partial_rotary_factor is not supported; GPT-OSS rotates whole "
                    "heads"
                )
        if kind == "default":
            return cls(theta)
        return _yarn(config, table, theta, max_position)

    def inv_freq(self, head_dim: int) -> NDArray[np.float32]:
        """Inverse frequencies, float32 [head_dim / 2], radians per token."""
        # float32 throughout, as the reference does: positions multiply its roundings.
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        wavelength = np.power(np.float32(self.theta), exponent, dtype=np.float32)  # over 2 pi
        extrapolated = np.float32(1) / wavelength
        if self.factor == 1.0:
            return np.asarray(extrapolated, np.float32)
        interpolated = np.float32(1) / (np.float32(self.factor) * wavelength)
        low, high = self._correction_range(head_dim)
        ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / max(high - low, 0.001)
        ramp = np.clip(ramp, 0, 1).astype(np.float32)
        return np.asarray(interpolated * ramp + extrapolated * (1 - ramp), np.float32)

    def _correction_range(self, head_dim: int) -> tuple[float, float]:
        def dimension(rotations: float) -> float:
            wavelengths = self.original_max_position / (rotations * 2 * math.pi)
            return head_dim * math.log(wavelengths) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, head_dim - 1)

    def tables(
        self, head_dim: int, positions: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines, float32 [positions, head_dim / 2] each, scaled for YaRN."""
        angles = np.arange(positions, dtype=np.float32)[:, None] * self.inv_freq(head_dim)
        scale = np.float32(self.attention_factor)
        return np.cos(angles) * scale, np.sin(angles) * scale


def _attention_factor(factor: float) -> float:
    return 0.1 * math.log(max(factor, 1.0)) + 1.0


def _table(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one table there is; None where a config has none, which is YaRN in both versions."""
    if "rope_scaling" in config and config["rope_scaling"] is None:
        raise UserError(
            "config.json: rope_scaling is null, plain RoPE to transformers 4 and YaRN to "
            f"transformers 5; {PLAIN}, or leave it out for the YaRN GPT-OSS has by default"
        )
    found = {
        key: config[key]
        for key in ("rope_scaling", "rope_parameters")
        if config.get(key) is not None
    }
    for key, table in found.items():
        if not isinstance(table, Mapping):
            raise UserError(f"config.json: {key} is {show(table)}, expected an object")
        if inner := [name for name, value in table.items() if isinstance(value, Mapping)]:
            raise UserError(
                f"config.json: {key} has a table for {show(inner[0])}, which transformers 4 passes "
                "over and transformers 5 refuses for this model; write one table for all layers"
            )
        if "rope_type" not in table and "type" not in table:
            raise UserError(
                f"config.json: {key} names no rope_type, which transformers 4 and 5 read "
                f"differently; {YARN}"
            )
    if len(found) == 2:
        scaling, parameters = found.values()
        if dict(parameters) | dict(scaling) != dict(parameters):
            raise UserError(
                "config.json: rope_scaling and rope_parameters differ; remove the one that is not "
                "this model's"
            )
        return parameters if isinstance(parameters, Mapping) else None
    return next(iter(found.values()), None)


def _theta(config: Mapping[str, Any], table: Mapping[str, Any]) -> float:
    if "rope_theta" not in table:
        return _above_one(number(config, "rope_theta", DEFAULT_THETA))
    inside = number(table, "rope_theta", None)
    # transformers 4 reads the one outside only, which it takes for its default where it is absent.
    outside = number(config, "rope_theta", DEFAULT_THETA if "rope_scaling" in config else inside)
    if inside != outside:
        raise UserError(
            f"config.json: rope_theta is {inside:g} in the table of rotary embedding and "
            f"{outside:g} outside; transformers 4 and 5 choose differently: write it once"
        )
    return _above_one(inside)


def _above_one(theta: float) -> float:
    if theta <= 1:
        raise UserError(f"config.json: rope_theta is {theta:g}, expected a number above 1")
    return theta


def _kind(table: Mapping[str, Any]) -> str:
    kinds = [table[key] for key in ("rope_type", "type") if key in table]
    if kinds[0] != kinds[-1]:
        raise UserError(
            f"config.json: rope_type is {show(kinds[0])} and type {show(kinds[1])}; "
            "transformers 4 and 5 choose differently: write rope_type alone"
        )
    if kinds[0] not in ("default", "yarn"):
        raise UserError(
            f"config.json: rope type {show(kinds[0])} is not supported; default and yarn are"
        )
    return str(kinds[0])


def _yarn(
    config: Mapping[str, Any], table: Mapping[str, Any], theta: float, max_position: int
) -> RopeSpec:
    if table.get("mscale") or table.get("mscale_all_dim"):
        raise UserError("config.json: YaRN's mscale is not supported; GPT-OSS has none")
    # A null is the default to both versions here.
    given = {key: value for key, value in table.items() if value is not None or key in _NEEDED}
    key = "original_max_position_embeddings"
    original = positive(given, key, max_position)
    if config.get(key, original) != original:
        raise UserError(
            f"config.json: {key} is {original} for transformers 4 and {show(config[key])} for "
            "transformers 5; write it in the table of rotary embedding alone"
        )
    factor = number(given, "factor", None)
    return RopeSpec(
        theta=theta,
        factor=factor,
        original_max_position=original,
        beta_fast=number(given, "beta_fast", 32.0),
        beta_slow=number(given, "beta_slow", 1.0),
        truncate=flag(given, "truncate", True),
        attention_factor=number(given, "attention_factor", _attention_factor(factor)),
    )


_NEEDED = ("factor", "truncate")  # transformers 4 and 5 do not agree on a null there
