"""The residual stream scaled: the same bits in float32, and only scales and exponents change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.fuse_norms import RMS_NORM, SKIP_RMS_NORM
from gptoss_onnx.graph_passes.pipeline import lower, recipe
from gptoss_onnx.graph_passes.quantization import PRESETS, Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding
from gptoss_onnx.graph_passes.scale_residual import RESIDUAL_SCALE, SCALE, ScaleResidual
from gptoss_onnx.graph_passes.step import rules
from gptoss_onnx.graph_passes.weight_role import give_role, read_role
from gptoss_onnx.runtimes.target import get_target
from tests.graph_passes.conftest import LAYERS, computed, nodes

Lower = Callable[..., ir.Model]
CPU = get_target("cpu")


@pytest.fixture
def lowered(checkpoint: Checkpoint, traced: ir.Model) -> Lower:
    def lower_it(preset: str, *, scaled: bool, rounding: Rounding = SEARCH) -> ir.Model:
        model = traced.clone()
        bind(model, checkpoint)
        steps = recipe(
            checkpoint.spec,
            CPU,
            Quantization.parse(preset),
            rounding,
            kv_windows=(None,) * LAYERS,
            all_logits=True,
            scale_residual=scaled,
        )
        return lower(model, steps, CPU)

    return lower_it


@pytest.mark.parametrize("preset", PRESETS)
def test_float32_computes_the_same_bits(lowered: Lower, preset: str) -> None:
    plain, scaled = (computed(lowered(preset, scaled=is_scaled)) for is_scaled in (False, True))
    assert all(np.array_equal(a, b) for a, b in zip(plain, scaled, strict=True))


def unscaled_embedding(model: ir.Model) -> None:
    (mul,) = (node for node in nodes(model, "Mul") if node.outputs[0].name == "residual")
    mul.outputs[0].replace_all_uses_with(mul.inputs[0])


def old_epsilon(model: ir.Model) -> None:
    for norm in nodes(model, "SkipSimplifiedLayerNormalization"):
        norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-5)


def unscaled_bias(model: ir.Model) -> None:
    value = model.graph.initializers["model.layers.1.mlp.experts.down_proj_bias"]
    value.const_value = ir.Tensor(value.const_value.numpy() / np.float32(SCALE), name=value.name)


@pytest.mark.parametrize("damage", [unscaled_embedding, old_epsilon, unscaled_bias])
def test_canary(lowered: Lower, damage: Callable[[ir.Model], None]) -> None:
    plain, scaled = lowered("fp32", scaled=False), lowered("fp32", scaled=True)
    damage(scaled)
    assert not np.array_equal(computed(plain)[0], computed(scaled)[0])


@pytest.mark.parametrize("rounding", [SEARCH, Rounding("rtn")], ids=["search", "rtn"])
@pytest.mark.parametrize("preset", ["int4", "int8", "mxfp4"])
def test_codes_stay_and_scales_shrink(lowered: Lower, preset: str, rounding: Rounding) -> None:
    plain, scaled = (
        lowered(preset, scaled=is_scaled, rounding=rounding).graph.initializers
        for is_scaled in (False, True)
    )
    changed = set()
    for name, value in scaled.items():
        if name == RESIDUAL_SCALE:
            continue
        before, after = plain[name].const_value.numpy(), value.const_value.numpy()
        if not np.array_equal(before, after):
            changed.add(name)
            assert np.array_equal(before.astype(np.float32) * SCALE, after.astype(np.float32))
    written = ("self_attn.o_proj.scales", "self_attn.o_proj.bias")
    written += ("mlp.experts.down_proj_scales", "mlp.experts.down_proj_bias")
    assert changed == {f"model.layers.{n}.{name}" for n in range(LAYERS) for name in written}


def test_exponents_end_at_the_smallest_power_and_keep_nan() -> None:
    scales = np.array([0, 3, 5, 6, 127, 254, 255], np.uint8)
    assert mxfp4.shifted(scales, -5).tolist() == [0, 0, 0, 1, 122, 249, 255]


def test_it_counts_what_it_scaled(model: ir.Model) -> None:
    rules(RMS_NORM, SKIP_RMS_NORM)(model)
    value = model.graph.initializers["model.layers.1.self_attn.o_proj.weight"]
    give_role(value, read_role("model.layers.1.self_attn.q_proj.weight"))
    assert ScaleResidual()(model) == 2 * LAYERS
