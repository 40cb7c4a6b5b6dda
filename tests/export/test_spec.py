"""A config becomes a spec: rotary frequencies as transformers computes them, errors in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GptOssConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

from gptoss_onnx.export.spec import FULL, SLIDING, GptOssSpec, RopeSpec
from gptoss_onnx.runtimes.errors import UserError

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}
# pow and the ramp round differently in torch and numpy: a few units in the last place.
ULPS = 8 * float(np.finfo(np.float32).eps)


@pytest.fixture
def config(packed: Path) -> dict[str, Any]:
    return json.loads((packed / "config.json").read_text())


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize(
    "scaling",
    [
        {**YARN, "truncate": False},
        {**YARN, "truncate": True},
        YARN,  # truncate is true where it is not given
        {**YARN, "factor": 8.0, "truncate": False},
        {**YARN, "attention_factor": 1.25, "truncate": False},
        {"rope_type": "default"},
    ],
    ids=["published", "truncated", "no truncate", "factor 8", "attention factor", "default"],
)
def test_inv_freq_is_transformers(
    config: dict[str, Any], scaling: dict[str, Any], head_dim: int
) -> None:
    factor = scaling.get("factor", 32)
    sizes = {"max_position_embeddings": int(4096 * factor), "head_dim": head_dim}
    config = config | sizes | {"rope_scaling": scaling}
    reference = GptOssConfig(**config)
    expected, attention_factor = (
        ROPE_INIT_FUNCTIONS["yarn"](reference, torch.device("cpu"))
        if scaling["rope_type"] == "yarn"
        else GptOssRotaryEmbedding(reference).rope_init_fn(reference, torch.device("cpu"))
    )
    rope = GptOssSpec.from_config(config).rope
    np.testing.assert_allclose(rope.inv_freq(head_dim), expected.numpy(), rtol=ULPS)
    assert rope.attention_factor == pytest.approx(attention_factor, rel=1e-12)


def test_tables_are_transformers(config: dict[str, Any]) -> None:
    """Angles of up to 4096 radians carry their own rounding: eps / 2 of it, into cos and sin."""
    config = config | {"max_position_embeddings": 131072, "head_dim": 64, "rope_scaling": YARN}
    embedding = GptOssRotaryEmbedding(GptOssConfig(**config))
    positions = np.array([0, 1, 127, 128, 4095])
    cos, sin = embedding(torch.zeros(1), torch.from_numpy(positions)[None])
    tables = GptOssSpec.from_config(config).rope.tables(64, 4096)
    for ours, theirs in zip(tables, (cos, sin), strict=True):
        assert (ours.dtype, ours.shape) == (np.float32, (4096, 32))
        np.testing.assert_allclose(ours[positions], theirs[0].numpy(), atol=4096 * ULPS)


def test_canary_truncate_changes_the_published_frequencies() -> None:
    rope = RopeSpec(150000.0, factor=32.0, truncate=False)
    flipped = dataclasses.replace(rope, truncate=True)
    ratio = flipped.inv_freq(64) / rope.inv_freq(64)
    assert np.abs(ratio - 1).max() > 0.1


def test_what_transformers_5_writes_is_the_same(config: dict[str, Any]) -> None:
    old = GptOssSpec.from_config(config)
    theta, scaling = config.pop("rope_theta"), config.pop("rope_scaling")
    config["rope_parameters"] = {**scaling, "rope_theta": theta}
    assert GptOssSpec.from_config(config) == old


def test_defaults(config: dict[str, Any]) -> None:
    for key in ("head_dim", "layer_types", "sliding_window", "swiglu_limit", "num_experts_per_tok"):
        del config[key]
    spec = GptOssSpec.from_config(config | {"num_key_value_heads": None})
    assert spec.head_dim == 64 // 4
    assert spec.num_kv_heads == spec.num_heads == 4
    assert spec.layer_types == (SLIDING, FULL)
    assert (spec.sliding_window, spec.swiglu_limit, spec.experts_per_token) == (128, 7.0, 2)
    assert spec.num_global_tokens == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": None}, "model_type is None"),
        ({"vocab_size": None}, "vocab_size is None, expected a whole number from 1 on"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"sliding_window": -1}, "sliding_window is -1"),
        ({"num_attention_heads": 3}, "num_attention_heads / num_key_value_heads"),
        ({"head_dim": 33}, "head_dim / 2 is not a whole number"),
        ({"num_experts_per_tok": 5}, "5 is more than num_local_experts 4"),
        ({"layer_types": [FULL]}, "layer_types must name"),
        ({"layer_types": [FULL, "linear_attention"]}, "layer_types must name"),
        ({"layer_types": 5}, "layer_types must name"),
        ({"layer_types": [["x"], "y"]}, "layer_types must name"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x', expected a positive number"),
        ({"swiglu_limit": float("nan")}, "swiglu_limit is nan"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"num_global_tokens": -3}, "num_global_tokens is -3"),
        ({"attention_bias": False}, "attention_bias true"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"rope_scaling": YARN | {"factor": -2}}, "factor is -2"),
        ({"rope_scaling": YARN | {"truncate": "false"}}, "truncate is 'false'"),
        ({"rope_scaling": YARN | {"mscale": 1.0}}, "mscale is not supported"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope type 'llama3' is not supported"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_a_config_that_does_not_fit(config: dict[str, Any], change: Any, why: str) -> None:
    with pytest.raises(UserError, match=r"^config\.json: ") as caught:
        GptOssSpec.from_config(config | change)
    assert why in str(caught.value) and "\n" not in str(caught.value)
