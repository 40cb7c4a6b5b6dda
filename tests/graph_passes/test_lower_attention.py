"""WindowedAttention -> GroupQueryAttention: attributes, inputs, packed weights, numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.export.trace import trace
from gptoss_onnx.graph_passes.lower_attention import LowerAttention
from gptoss_onnx.graph_passes.quantization import FP32, INT4, INT8, Format, uniform
from tests.graph_passes.conftest import (
    LAYERS,
    TOLERANCE,
    WINDOW,
    computed,
    difference,
    nodes,
    ops,
)

WINDOWS, FULL = (WINDOW, None, WINDOW), (None,) * LAYERS
LENGTHS = {"Shape": 2, "Slice": 1, "ReduceSum": 2, "Cast": 3, "Squeeze": 1, "Sub": 2}


@pytest.mark.parametrize("windowed_kv", [True, False])
def test_attributes_and_inputs(model: ir.Model, spec: GptOssSpec, windowed_kv: bool) -> None:
    assert LowerAttention(uniform("test", FP32), WINDOWS if windowed_kv else FULL)(model) == LAYERS
    found = ops(model)
    assert "WindowedAttention" not in found
    assert {op: found[op] for op in LENGTHS} == LENGTHS  # once a graph, not once a layer
    for layer, node in enumerate(nodes(model, "GroupQueryAttention")):
        attributes = {name: a.value for name, a in node.attributes.items()}
        expected = {"num_heads": 4, "kv_num_heads": 2, "scale": 32**-0.5, "do_rotary": 1}
        if spec.attention[layer].window is not None:
            expected["local_window_size"] = WINDOW
            if windowed_kv:
                expected["sliding_window_cache"] = 1
        assert attributes == pytest.approx(expected)
        given = {at: str(v.name) for at, v in enumerate(node.inputs) if v is not None}
        prefix = f"model.layers.{layer}.self_attn"
        assert given == {
            0: f"{prefix}.qkv",
            3: f"past_key_values.{layer}.key",
            4: f"past_key_values.{layer}.value",
            5: "lengths.seqlens_k",
            6: "lengths.total_sequence_length",
            7: "cos_cache",
            8: "sin_cache",
            11: f"{prefix}.sinks",
            16: "lengths.query_seqlens",
        }


@pytest.mark.parametrize("windowed_kv", [True, False])
def test_a_window_in_the_cache_shows_in_its_shape(
    model: ir.Model, spec: GptOssSpec, windowed_kv: bool
) -> None:
    LowerAttention(uniform("test", FP32), WINDOWS if windowed_kv else FULL)(model)
    slots = {
        str(v.name): str(v.shape[2])
        for v in (*model.graph.inputs, *model.graph.outputs)[2:]
        if v.shape is not None and len(v.shape) == 4
    }
    assert len(slots) == 4 * LAYERS
    for layer in range(LAYERS):
        window = windowed_kv and spec.attention[layer].window is not None
        for part in ("key", "value"):
            assert slots[f"past_key_values.{layer}.{part}"] == ("window" if window else "past")
            assert slots[f"present.{layer}.{part}"] == ("window" if window else "total")


def test_q_k_and_v_are_one_weight(model: ir.Model, checkpoint: Checkpoint) -> None:
    LowerAttention(uniform("test", FP32), WINDOWS)(model)
    names = [f"model.layers.1.self_attn.{x}_proj" for x in "qkv"]
    stored = model.graph.initializers
    for part in ("weight", "bias"):
        rows = [checkpoint.tensors[f"{name}.{part}"].read().astype(np.float32) for name in names]
        packed = stored[f"model.layers.1.self_attn.qkv_proj.{part}"].const_value.numpy()
        np.testing.assert_array_equal(packed.T, np.concatenate(rows))
    assert not [name for name in stored if "q_proj" in name or "k_proj" in name]


def test_numbers(model: ir.Model, oracle: list[NDArray[np.float32]]) -> None:
    LowerAttention(uniform("test", FP32), FULL)(model)
    assert difference(computed(model), oracle) <= TOLERANCE


def test_canary_a_window_one_short_shows(
    model: ir.Model, oracle: list[NDArray[np.float32]]
) -> None:
    for node in nodes(model, "WindowedAttention"):
        if node.attributes.get_int("window"):
            node.attributes["window"] = ir.AttrInt64("window", WINDOW - 1)
    LowerAttention(uniform("test", FP32), FULL)(model)
    assert difference(computed(model), oracle) > 20 * TOLERANCE


@pytest.fixture(scope="module", params=[16, 64])
def power_of_two(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint whose scale is 1/4 or 1/8."""
    folder = tmp_path_factory.mktemp("scale") / "tiny"
    return open_checkpoint(
        synthesize(folder, geometry="tiny", layers=LAYERS, head_dim=request.param)
    )


@pytest.mark.parametrize("form", [FP32, INT4])
def test_the_rows_of_q_have_the_scale_where_it_rounds_nothing(
    power_of_two: Checkpoint, form: Format
) -> None:
    models = {}
    for unit_scale in (False, True):
        models[unit_scale] = model = trace(power_of_two.spec)
        bind(model, power_of_two)
        LowerAttention(uniform("test", form), FULL, unit_scale=unit_scale)(model)
    head_dim = power_of_two.spec.head_dim
    for unit_scale, model in models.items():
        for node in nodes(model, "GroupQueryAttention"):
            scale = node.attributes.get_float("scale")
            assert scale == (1 if unit_scale else head_dim**-0.5)
    plain, scaled = (models[key].graph.initializers for key in (False, True))
    rows = 4 * head_dim  # of q
    for part in ("weight", "bias") if form is FP32 else ("weight_q4", "scales", "bias"):
        name = f"model.layers.1.self_attn.qkv_proj.{part}"
        before, after = (weights[name].const_value.numpy() for weights in (plain, scaled))
        if part == "weight":  # stored as [K, N]
            before, after = before.T, after.T
        factor = 1 if part == "weight_q4" else head_dim**-0.5  # the codes are the same
        np.testing.assert_array_equal(after[:rows], before[:rows] * factor)
        np.testing.assert_array_equal(after[rows:], before[rows:])
    assert difference(computed(models[True]), computed(models[False])) <= TOLERANCE


def test_a_scale_that_would_round_stays_in_the_kernel(model: ir.Model) -> None:
    LowerAttention(uniform("test", FP32), FULL, unit_scale=True)(model)
    for node in nodes(model, "GroupQueryAttention"):
        assert node.attributes.get_float("scale") == pytest.approx(32**-0.5)


def test_global_tokens_become_one_bias(model: ir.Model, spec: GptOssSpec) -> None:
    for node in nodes(model, "WindowedAttention"):
        node.attributes["num_global_tokens"] = ir.AttrInt64("num_global_tokens", 4)
    oracle = computed(model.clone())
    LowerAttention(uniform("test", FP32), FULL)(model)
    assert ops(model)["Where"] == 1
    for layer, node in enumerate(nodes(model, "GroupQueryAttention")):
        assert "local_window_size" not in node.attributes
        assert "sliding_window_cache" not in node.attributes
        assert (node.inputs[10] is not None) == (spec.attention[layer].window is not None)
    assert difference(computed(model), oracle) <= TOLERANCE


def test_a_quantized_projection_keeps_its_bias(model: ir.Model) -> None:
    LowerAttention(uniform("test", dataclasses.replace(INT8, block=64)), WINDOWS)(model)
    packed = nodes(model, "MatMulNBits")
    assert len(packed) == LAYERS
    for node in packed:
        assert (node.attributes.get_int("N"), node.attributes.get_int("K")) == (256, 64)
        assert node.attributes.get_int("block_size") == 64
        assert str(node.inputs[5].name).endswith("qkv_proj.bias")


def test_a_graph_without_attention_is_left(model: ir.Model) -> None:
    LowerAttention(uniform("test", FP32), WINDOWS)(model)
    before = ops(model)
    assert LowerAttention(uniform("test", FP32), WINDOWS)(model) == 0
    assert ops(model) == before
