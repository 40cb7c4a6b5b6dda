"""The model's shape, parsed once from config.json; nothing downstream asks a config again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_onnx.export.config_fields import flag, number, positive
from gptoss_onnx.export.rope import RopeSpec
from gptoss_onnx.export.safetensors_folder import show
from gptoss_onnx.graph_passes.attention_spec import AttentionSpec
from gptoss_onnx.runtimes.errors import UserError

SLIDING, FULL = "sliding_attention", "full_attention"
MAX_LAYERS = 10_000
MAX_POSITIONS = 1 << 22  # tables of rotary embedding have a row for each


@dataclass(frozen=True)
class GptOssSpec:
    """Every number of a GPT-OSS model that the graph, its passes or its package need."""

    attention: tuple[AttentionSpec, ...]  # of each layer
    hidden_size: int
    intermediate_size: int
    num_experts: int
    experts_per_token: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    swiglu_limit: float  # gate is clamped to it from above, up on both sides
    swiglu_alpha: float  # gate * sigmoid(alpha gate)
    rope: RopeSpec
    tie_word_embeddings: bool

    @property
    def num_layers(self) -> int:
        return len(self.attention)

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GptOssSpec:
        """Parse a config.json; UserError names the field that is missing or does not fit."""
        if not flag(config, "attention_bias", True) or config.get("hidden_act", "silu") != "silu":
            raise UserError(
                "config.json: GPT-OSS has attention_bias true and hidden_act 'silu'; "
                "this checkpoint is another architecture"
            )
        if config.get("model_type") != "gpt_oss":
            raise UserError(
                f"config.json: model_type is {show(config.get('model_type'))}, not 'gpt_oss'; "
                "only GPT-OSS checkpoints can be exported"
            )
        # What is absent is what transformers' GptOssConfig makes of it, 4 and 5 alike.
        layers = positive(config, "num_hidden_layers", 36, most=MAX_LAYERS)
        heads = positive(config, "num_attention_heads", 64)
        hidden = positive(config, "hidden_size", 2880)
        max_position = positive(config, "max_position_embeddings", 131072, most=MAX_POSITIONS)
        spec = cls(
            attention=_attention(config, layers),
            hidden_size=hidden,
            intermediate_size=positive(config, "intermediate_size", 2880),
            num_experts=_named(config, "num_local_experts", 128, "num_experts"),
            experts_per_token=_named(config, "num_experts_per_tok", 4, "experts_per_token"),
            num_heads=heads,
            num_kv_heads=_or_null(config, "num_key_value_heads", 8, heads),
            head_dim=_or_null(config, "head_dim", 64, hidden // heads),
            vocab_size=positive(config, "vocab_size", 201088),
            max_position_embeddings=max_position,
            rms_norm_eps=number(config, "rms_norm_eps", 1e-5),
            swiglu_limit=number(config, "swiglu_limit", 7.0),
            swiglu_alpha=number(config, "swiglu_alpha", 1.702),
            rope=RopeSpec.from_config(config, max_position),
            tie_word_embeddings=flag(config, "tie_word_embeddings", False),
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


def _or_null(config: Mapping[str, Any], key: str, absent: int, null: int) -> int:
    """A number for which null says something else than its absence."""
    return null if config.get(key, absent) is None else positive(config, key, absent)


def _named(config: Mapping[str, Any], key: str, absent: int, other: str) -> int:
    """A number that other tools write under another name, which transformers does not read."""
    value = positive(config, key, absent)
    if key not in config and config.get(other, value) != value:
        raise UserError(
            f"config.json: {key} is absent, which means {value}, and {other} is "
            f"{show(config[other])}; write {key}"
        )
    return value


def _attention(config: Mapping[str, Any], layers: int) -> tuple[AttentionSpec, ...]:
    """By `layer_types`, in any order; a layer slides and is full by turns where it is absent."""
    window = positive(config, "sliding_window", 128)
    sliding = AttentionSpec(window, positive(config, "num_global_tokens", 0, least=0))
    kinds = {SLIDING: sliding, FULL: AttentionSpec(None)}
    types = config.get("layer_types")
    if types is None:
        types = [FULL if layer % 2 else SLIDING for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise UserError(
            f"config.json: layer_types is {show(types)}, expected {SLIDING} or {FULL} for each of "
            f"num_hidden_layers {layers}"
        )
    for layer, kind in enumerate(types):
        if not isinstance(kind, str) or kind not in kinds:
            raise UserError(
                f"config.json: layer_types[{layer}] is {show(kind)}; "
                f"GPT-OSS has {SLIDING} and {FULL}"
            )
    return tuple(kinds[kind] for kind in types)
