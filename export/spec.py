"""The model's shape, parsed once from config.json; nothing downstream asks a config again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.runtimes.errors import UserError

SLIDING, FULL = "sliding_attention", "full_attention"


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


@dataclass(frozen=True)
class GptOssSpec:
    """Every number of a GPT-OSS model that the graph, its passes or its package need."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    experts_per_token: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    sliding_window: int  # tokens, the current one included
    num_global_tokens: int  # first tokens of the sequence that a sliding layer always sees
    layer_types: tuple[str, ...]
    rms_norm_eps: float
    swiglu_limit: float
    rope: RopeSpec
    tie_word_embeddings: bool

    swiglu_alpha = 1.702

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def is_sliding(self, layer: int) -> bool:
        return self.layer_types[layer] == SLIDING

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GptOssSpec:
        """Parse a config.json; UserError names the field that is missing or does not fit."""
        if not _flag(config, "attention_bias", True) or config.get("hidden_act", "silu") != "silu":
            raise UserError(
                "config.json: GPT-OSS has attention_bias true and hidden_act 'silu'; "
                "this checkpoint is another architecture"
            )
        if config.get("model_type") != "gpt_oss":
            raise UserError(
                f"config.json: model_type is {config.get('model_type')!r}, not 'gpt_oss'; "
                "only GPT-OSS checkpoints can be exported"
            )
        layers = _positive(config, "num_hidden_layers")
        heads = _positive(config, "num_attention_heads")
        kv_heads = _positive(config, "num_key_value_heads", heads)
        hidden = _positive(config, "hidden_size")
        max_position = _positive(config, "max_position_embeddings", 131072)
        spec = cls(
            num_layers=layers,
            hidden_size=hidden,
            intermediate_size=_positive(config, "intermediate_size"),
            num_experts=_positive(config, "num_local_experts"),
            experts_per_token=_positive(
                config, "num_experts_per_tok", config.get("experts_per_token")
            ),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=_positive(config, "head_dim", hidden // heads),
            vocab_size=_positive(config, "vocab_size"),
            max_position_embeddings=max_position,
            sliding_window=_positive(config, "sliding_window", 128),
            num_global_tokens=_positive(config, "num_global_tokens", 0, least=0),
            layer_types=_layer_types(config, layers),
            rms_norm_eps=_number(config, "rms_norm_eps", 1e-5),
            swiglu_limit=_number(config, "swiglu_limit", 7.0),
            rope=_rope(config, max_position),
            tie_word_embeddings=_flag(config, "tie_word_embeddings", False),
        )
        spec._check()
        return spec

    def _check(self) -> None:
        for wrong, why in (
            (self.num_heads % self.num_kv_heads, "num_attention_heads / num_key_value_heads"),
            (self.head_dim % 2, "head_dim / 2"),
        ):
            if wrong:
                raise UserError(f"config.json: {why} is not a whole number")
        if self.experts_per_token > self.num_experts:
            raise UserError(
                f"config.json: num_experts_per_tok {self.experts_per_token} is more than "
                f"num_local_experts {self.num_experts}"
            )


def _positive(
    config: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1
) -> int:
    value = default if config.get(key) is None else config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"config.json: {key} is {value!r}, expected a whole number from {least} on")
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = default if config.get(key) is None else config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"config.json: {key} is {value!r}, expected a positive number")
    return float(value)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, bool):
        raise UserError(f"config.json: {key} is {value!r}, expected true or false")
    return value


def _layer_types(config: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    types = config.get("layer_types")
    if types is None:
        return tuple(SLIDING if layer % 2 == 0 else FULL for layer in range(layers))
    if (
        not isinstance(types, list)
        or len(types) != layers
        or any(kind not in (SLIDING, FULL) for kind in types)
    ):
        raise UserError(f"config.json: layer_types must name {SLIDING} or {FULL} for each layer")
    return tuple(types)


def _rope(config: Mapping[str, Any], max_position: int) -> RopeSpec:
    # transformers 5 moved rope_theta and rope_scaling into one rope_parameters.
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise UserError(f"config.json: rope_scaling is {scaling!r}, expected an object")
    theta = _number({**config, **scaling}, "rope_theta", 150000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeSpec(theta)
    if kind != "yarn":
        raise UserError(f"config.json: rope type {kind!r} is not supported; default and yarn are")
    if scaling.get("mscale") or scaling.get("mscale_all_dim"):
        raise UserError("config.json: YaRN's mscale is not supported; GPT-OSS has none")
    original = _positive(scaling, "original_max_position_embeddings", max_position)
    factor = _number(scaling, "factor", max_position / original)
    return RopeSpec(
        theta=theta,
        factor=factor,
        original_max_position=original,
        beta_fast=_number(scaling, "beta_fast", 32.0),
        beta_slow=_number(scaling, "beta_slow", 1.0),
        truncate=_flag(scaling, "truncate", True),
        attention_factor=_number(
            scaling, "attention_factor", 0.1 * math.log(max(factor, 1.0)) + 1.0
        ),
    )
