"""What names say once, and that it stays with values and tensors."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import Checkpoint, layout
from gptoss_onnx.export.plan import Options, plan, weight_bytes
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.graph_passes.quantization import FP32, INT4, PRESETS, layer_key, read_key
from gptoss_onnx.graph_passes.rounding import rounding_name
from gptoss_onnx.graph_passes.step import PassError
from gptoss_onnx.graph_passes.weight_role import (
    WeightRole,
    find_role,
    give_role,
    give_roles,
    known_role,
    read_role,
    role_of,
)
from gptoss_onnx.runtimes.target import load_targets
from tests.graph_passes.conftest import LAYERS

GROUPS = {"embedding", "qkv", "o", "experts", "lm_head", "router", "norm", "sinks"}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.embed_tokens.weight", WeightRole(None, "embedding", "weight")),
        ("lm_head.weight", WeightRole(None, "lm_head", "weight")),
        ("model.layers.0.self_attn.q_proj.weight", WeightRole(0, "qkv", "q")),
        ("model.layers.35.self_attn.v_proj.bias", WeightRole(35, "qkv", "v", is_bias=True)),
        ("model.layers.2.self_attn.o_proj.bias", WeightRole(2, "o", "o", is_bias=True)),
        ("model.layers.2.mlp.experts.gate_up_proj", WeightRole(2, "experts", "gate_up")),
        ("model.layers.2.mlp.experts.down_proj_bias", WeightRole(2, "experts", "down", True)),
        ("past_key_values.11.value", WeightRole(11, "kv", "value")),
        ("present.11.key", WeightRole(11, "kv", "key")),
    ],
)
def test_a_name_is_read_once(name: str, role: WeightRole) -> None:
    assert read_role(name) == role
    if role.group != "kv":
        assert role.name == name == f"{role.module}.{role.leaf}".lstrip(".")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "another.weight",
        "lm_head.weight.traced",
        "model.layers.01.self_attn.sinks",
        "model.layers.x.self_attn.sinks",
        "model.layers.1.self_attn.qkv_proj.weight",
        "model.layers.1.mlp.experts.down_proj_int4",
        "past_key_values.1.keys",
    ],
)
def test_an_unknown_name_is_an_error_in_words(name: str) -> None:
    assert find_role(name) is None
    with pytest.raises(PassError, match=f"'{name}' is the name of no weight and no KV tensor"):
        read_role(name)


def test_kv_tensors_and_strangers_have_no_published_name() -> None:
    with pytest.raises(PassError, match="has no name"):
        _ = WeightRole(1, "kv", "key").name
    with pytest.raises(PassError, match="has no role"):
        role_of(ir.Value(name="constant.1"))
    with pytest.raises(PassError, match="has no role"):
        role_of(None)


@pytest.mark.parametrize(
    ("name", "rounded"),
    [
        ("model.layers.3.self_attn.k_proj.weight", "model.layers.3.self_attn.qkv_proj"),
        ("model.layers.3.self_attn.o_proj.weight", "model.layers.3.self_attn.o_proj"),
        ("lm_head.weight", "lm_head"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.layers.3.mlp.experts.down_proj", "model.layers.3.mlp.experts.down_proj"),
    ],
)
def test_what_rounding_calls_a_weight(name: str, rounded: str) -> None:
    assert rounding_name(read_role(name)) == rounded


def test_a_recipe_is_asked_by_role() -> None:
    assert read_key(layer_key(1, "o")) == ("o", 1)
    assert (read_key("lm_head"), read_key("layers.1.lm_head")) == (("lm_head", None), None)
    recipe = PRESETS["fp32"].changed({layer_key(1, "o"): "int4"})
    forms = {n: recipe.of_role(WeightRole(n, "o", "o")) for n in (0, 1)}
    assert forms == {0: FP32, 1: INT4}
    assert PRESETS["int4"].of_role(WeightRole(1, "router", "weight")) == FP32


def test_every_tensor_of_a_checkpoint_has_a_role_of_its_own(spec: GptOssSpec) -> None:
    names = [name for name, *_ in layout(spec, "dense")]
    roles = [read_role(name) for name in names]
    assert [role.name for role in roles] == names
    assert len(set(roles)) == len(roles)
    assert {role.group for role in roles} == GROUPS
    assert {role.layer for role in roles} == {None, *range(LAYERS)}


def test_a_clone_keeps_the_roles(traced: ir.Model, checkpoint: Checkpoint) -> None:
    copy = traced.clone()
    bind(copy, checkpoint)
    for value in copy.graph.initializers.values():
        if (role := find_role(str(value.name))) is not None:
            assert role_of(value) == role
            assert value.const_value is not None and known_role(value.const_value) == role
    kv = Counter(role_of(value) for value in copy.graph.inputs[2:])
    kv.update(role_of(value) for value in copy.graph.outputs[1:])
    assert kv == {WeightRole(n, "kv", p): 2 for n in range(LAYERS) for p in ("key", "value")}


def test_roles_not_names_bind_the_weights(traced: ir.Model, checkpoint: Checkpoint) -> None:
    """A value whose role says another layer gets that layer's experts."""
    copy = traced.clone()
    first, second = (
        copy.graph.initializers[f"model.layers.{n}.mlp.experts.down_proj"] for n in (0, 1)
    )
    give_role(first, role_of(second))
    bind(copy, checkpoint)
    assert first.const_value is not None and second.const_value is not None
    assert (first.const_value.numpy() == second.const_value.numpy()).all()


def test_a_weight_without_a_value_must_have_a_name_that_is_known(traced: ir.Model) -> None:
    copy = traced.clone()
    copy.graph.initializers["lm_head.weight"].name = "head.weight"
    with pytest.raises(PassError, match=r"'head\.weight' is the name of no weight"):
        give_roles(copy.graph)


@pytest.mark.parametrize("target", ["cpu", "web", "directml", "android"])
@pytest.mark.parametrize("activations", [None, "float16"])
def test_what_a_pass_makes_of_a_weight_keeps_its_role(
    checkpoint: Checkpoint, target: str, activations: str | None
) -> None:
    """Names that passes generate say the same as the roles they carry."""
    loaded = load_targets()[target]
    if activations not in (None, *loaded.activations):
        activations = loaded.activations[0]
    made = plan(checkpoint, Options(loaded, PRESETS["int4"], activations=activations))
    by_name = Counter(embedding=0, experts=0, dense=0)
    for tensor in made.tensors:
        name = str(tensor.name)
        lookup = "embed_tokens" in name or name in ("cos_cache", "sin_cache")
        by_name["embedding" if lookup else "experts" if ".experts." in name else "dense"] += (
            tensor.nbytes
        )
    assert {group: weight_bytes(made)[group] for group in by_name} == by_name
