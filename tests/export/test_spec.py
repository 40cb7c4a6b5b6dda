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
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

from gptoss_onnx.export.rope import RopeSpec
from gptoss_onnx.export.spec import FULL, SLIDING, GptOssSpec
from gptoss_onnx.graph_passes.attention_spec import AttentionSpec
from gptoss_onnx.runtimes.errors import UserError
from tests.conftest import ROOT
from tests.export import transformers_rope
from tests.transformers5 import under_transformers_5

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


SCALINGS: dict[str, dict[str, Any]] = {
    "published": {**YARN, "truncate": False},
    "truncated": {**YARN, "truncate": True},
    "no truncate": YARN,  # then it is true
    "factor 8": {**YARN, "factor": 8.0, "truncate": False},
    "attention factor": {**YARN, "attention_factor": 1.25, "truncate": False},
    "nulls": {**YARN, "attention_factor": None, "beta_fast": None, "mscale": None},
    "no original": {k: v for k, v in YARN.items() if not k.startswith("original")},
    "type": {**{k: v for k, v in YARN.items() if k != "rope_type"}, "type": "yarn"},
    "default": {"rope_type": "default"},
}
# Configs by what is added to one without a word about rotary embedding.
AGREED: dict[str, dict[str, Any]] = {
    "absent": {},
    "absent, theta": {"rope_theta": 10000.0},
    "parameters null": {"rope_parameters": None, "rope_theta": 10000},
    "theta inside too": {"rope_scaling": {**YARN, "rope_theta": 5e4}, "rope_theta": 5e4},
    **{name: {"rope_scaling": table, "rope_theta": 10000.0} for name, table in SCALINGS.items()},
}
ONLY_5: dict[str, dict[str, Any]] = {
    "parameters, theta outside": {"rope_parameters": YARN, "rope_theta": 10000.0},
    "parameters without theta": {"rope_parameters": YARN},
    **{
        f"parameters, {name}": {"rope_parameters": {**table, "rope_theta": 10000.0}}
        for name, table in SCALINGS.items()
    },
}
TABLES = {kind: {**YARN, "rope_theta": 10000.0} for kind in (SLIDING, FULL)}
UNTYPED = {k: v for k, v in YARN.items() if k != "rope_type"}
DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "null": ({"rope_scaling": None}, 'rope_scaling is null.*"rope_type": "default".*leave it out'),
    "null, theta": ({"rope_scaling": None, "rope_theta": 10000.0}, "rope_scaling is null"),
    "empty": ({"rope_scaling": {}}, 'rope_scaling names no rope_type.*"rope_type": "yarn"'),
    "no type": ({"rope_scaling": UNTYPED}, "rope_scaling names no rope_type"),
    "theta alone": ({"rope_scaling": {"rope_theta": 5e3}}, "rope_scaling names no rope_type"),
    "parameters empty": ({"rope_parameters": {}}, "rope_parameters names no rope_type"),
    "parameters no type": ({"rope_parameters": UNTYPED}, "rope_parameters names no rope_type"),
    "each layer type": ({"rope_parameters": TABLES}, "a table for 'sliding_att.*one table for all"),
    "two types": ({"rope_scaling": {**YARN, "type": "default"}}, "write rope_type alone"),
    "theta inside": ({"rope_scaling": {**YARN, "rope_theta": 5e3}}, "rope_theta is 5000.*once"),
    "two thetas": (
        {"rope_scaling": {**YARN, "rope_theta": 5e3}, "rope_theta": 1e4},
        "5000 .* 10000 outside",
    ),
    "factor null": ({"rope_scaling": {**YARN, "factor": None}}, "factor is None"),
    "no factor": ({"rope_scaling": {"rope_type": "yarn"}}, "factor is None"),
    "partial": ({"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "original outside": (
        {"rope_scaling": YARN, "original_max_position_embeddings": 128},
        "original_max_position_embeddings is 4096 .* 128 .* alone",
    ),
    "theta null": ({"rope_scaling": YARN, "rope_theta": None}, "rope_theta is None"),
    "window null": ({"sliding_window": None}, "sliding_window is None"),
}


@pytest.fixture(scope="module")
def bare() -> dict[str, Any]:
    """A config without a word about rotary embedding."""
    config = json.loads((ROOT / "demo" / "config.json").read_text())
    return {k: v for k, v in config.items() if not k.startswith("rope_")}


@pytest.fixture(scope="module")
def of_5(bare: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 makes of every config here, by its name."""
    cases = {**AGREED, **ONLY_5, **{name: change for name, (change, _) in DIFFERENT.items()}}
    asked = json.dumps([bare | change for change in cases.values()])
    script = Path(transformers_rope.__file__)
    return dict(zip(cases, json.loads(under_transformers_5(script, given=asked)), strict=True))


def assert_same(spec: GptOssSpec, theirs: dict[str, Any]) -> None:
    np.testing.assert_allclose(spec.rope.inv_freq(spec.head_dim), theirs["inv_freq"], rtol=ULPS)
    assert spec.rope.attention_factor == pytest.approx(theirs["scale"], rel=1e-12)


@pytest.mark.parametrize("name", AGREED)
def test_rope_is_that_of_transformers_4_and_5(
    name: str, bare: dict[str, Any], of_5: dict[str, Any]
) -> None:
    spec = GptOssSpec.from_config(bare | AGREED[name])
    four = transformers_rope.rope_of(bare | AGREED[name])
    assert four is not None
    assert_same(spec, four)
    assert_same(spec, of_5[name])


@pytest.mark.parametrize("name", ONLY_5)
def test_rope_parameters_are_read_as_transformers_5_does(
    name: str, bare: dict[str, Any], of_5: dict[str, Any]
) -> None:
    assert_same(GptOssSpec.from_config(bare | ONLY_5[name]), of_5[name])


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_transformers_read_differently_is_refused(
    name: str, bare: dict[str, Any], of_5: dict[str, Any]
) -> None:
    change, why = DIFFERENT[name]
    with pytest.raises(UserError, match=why) as caught:
        GptOssSpec.from_config(bare | change)
    assert "\n" not in str(caught.value)
    if "sliding_window" not in change:  # a null there fails in the model, not in its config
        four, five = transformers_rope.rope_of(bare | change), of_5[name]
        same = four == five and four is not None
        assert not same, f"{name}: both make {four} of it"


@pytest.mark.parametrize("head_dim", [32, 64])
def test_head_dim_of_the_frequencies(bare: dict[str, Any], head_dim: int) -> None:
    config = bare | {"head_dim": head_dim, "rope_scaling": SCALINGS["published"]}
    four = transformers_rope.rope_of(config)
    assert four is not None and len(four["inv_freq"]) == head_dim // 2
    assert_same(GptOssSpec.from_config(config), four)


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


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_key_value_heads": None, "layer_types": None},
        {"head_dim": None, "hidden_size": 256, "num_attention_heads": 8},
    ],
    ids=["absent", "heads and layers null", "head_dim null"],
)
def test_defaults_are_transformers(change: dict[str, Any]) -> None:
    """Of what is absent and of what is null, which differ."""
    config = {"model_type": "gpt_oss", **change}
    spec, theirs = GptOssSpec.from_config(config), GptOssConfig.from_dict(dict(config))
    assert (spec.num_layers, spec.num_experts) == (
        theirs.num_hidden_layers,
        theirs.num_local_experts,
    )
    assert (spec.hidden_size, spec.intermediate_size, spec.vocab_size) == (
        theirs.hidden_size,
        theirs.intermediate_size,
        theirs.vocab_size,
    )
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (
        theirs.num_attention_heads,
        theirs.num_key_value_heads,
        theirs.head_dim,
    )
    assert spec.experts_per_token == theirs.num_experts_per_tok
    kinds = {SLIDING: AttentionSpec(theirs.sliding_window), FULL: AttentionSpec(None)}
    assert spec.attention == tuple(kinds[kind] for kind in theirs.layer_types)
    assert (spec.rms_norm_eps, spec.tie_word_embeddings) == (1e-5, theirs.tie_word_embeddings)
    assert (spec.swiglu_limit, spec.swiglu_alpha) == (7.0, 1.702)
    assert spec.max_position_embeddings == theirs.max_position_embeddings


@pytest.mark.parametrize(
    ("key", "other", "default"),
    [("num_experts_per_tok", "experts_per_token", 4), ("num_local_experts", "num_experts", 128)],
)
def test_a_name_of_other_tools_is_no_default(
    config: dict[str, Any], key: str, other: str, default: int
) -> None:
    config[other] = 2
    assert GptOssSpec.from_config(config)  # as transformers, which reads its own name
    del config[key]
    with pytest.raises(UserError, match=f"{key} is absent, which means {default}, and {other} is"):
        GptOssSpec.from_config(config)


@pytest.mark.parametrize("pattern", ["ss", "ff", "fs", "sf", "sffsssf"])
@pytest.mark.parametrize("global_tokens", [0, 4])
def test_layers_slide_in_any_order(
    config: dict[str, Any], pattern: str, global_tokens: int
) -> None:
    kinds = {"s": SLIDING, "f": FULL}
    config |= {
        "num_hidden_layers": len(pattern),
        "layer_types": [kinds[kind] for kind in pattern],
        "sliding_window": 1024,
        "num_global_tokens": global_tokens,
    }
    specs = {"s": AttentionSpec(1024, global_tokens), "f": AttentionSpec(None)}
    assert GptOssSpec.from_config(config).attention == tuple(specs[kind] for kind in pattern)


def test_both_tables_that_agree_are_one(config: dict[str, Any]) -> None:
    spec = GptOssSpec.from_config(config)
    config["rope_parameters"] = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    assert GptOssSpec.from_config(config) == spec


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
        ({"layer_types": [FULL]}, "for each of num_hidden_layers 2"),
        (
            {"layer_types": [FULL, "linear_attention"]},
            "layer_types[1] is 'linear_attention'; GPT-OSS has",
        ),
        ({"layer_types": 5}, "layer_types is 5, expected"),
        ({"layer_types": [["x"], "y"]}, "layer_types[0] is ['x']; GPT-OSS has"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x', expected a positive number"),
        ({"swiglu_limit": float("nan")}, "swiglu_limit is nan"),
        ({"swiglu_alpha": None}, "swiglu_alpha is None"),
        ({"swiglu_alpha": 10**400}, "expected a positive number"),
        ({"num_hidden_layers": 1 << 31}, "expected a whole number from 1 to 10000"),
        ({"max_position_embeddings": 1 << 40}, "max_position_embeddings is 1099511627776"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"rope_theta": 1}, "rope_theta is 1, expected a number above 1"),
        (
            {"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 8.0}},
            "rope_scaling and rope_parameters differ",
        ),
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
