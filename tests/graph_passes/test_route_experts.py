"""ai.gptoss::MoE -> routed experts of stock operators: QMoE's bytes and QMoE's numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_onnx.graph_passes.lower_moe import LowerMoE
from gptoss_onnx.graph_passes.quantization import INT4, INT8, Format, Quantization, uniform
from gptoss_onnx.graph_passes.route_experts import RouteExperts
from gptoss_onnx.graph_passes.weights import Part
from tests.graph_passes.conftest import LAYERS, computed, difference, nodes

EXPERTS, HIDDEN, INTERMEDIATE = 4, 64, 64  # of the tiny geometry
INT4_64 = Format("int", 4, 64)
# Sums in another order turn an activation to the next of its 8-bit codes here and there: at most
# what rounding all of them costs (`int8_tolerance` in tests/parity).
ROUNDING = math.sqrt(3 * LAYERS) * 2.1 / (127 * math.sqrt(12))
Bound = Callable[[], ir.Model]


@pytest.fixture
def bound(model: ir.Model) -> Bound:
    """A new copy of the bound graph at each call; its weights are shared and only read."""
    return model.clone


def routed(model: ir.Model, form: Format) -> ir.Model:
    assert RouteExperts(uniform("test", form))(model) == LAYERS
    return model


def fused(model: ir.Model, form: Format) -> ir.Model:
    assert LowerMoE(uniform("test", form))(model) == LAYERS
    return model


@pytest.mark.parametrize("form", [INT8, INT4_64], ids=str)
def test_each_expert_is_a_branch_of_two_linears(model: ir.Model, form: Format) -> None:
    routed(model, form)
    choices = nodes(model, "If")
    assert len(choices) == LAYERS * EXPERTS
    assert not nodes(model, "MoE")
    for choice in choices:
        then, other = (choice.attributes[f"{name}_branch"].value for name in ("then", "else"))
        assert [node.op_type for node in other] == ["Identity"]
        linears = [node for node in then if node.op_type == "MatMulNBits"]
        sizes = [(2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
        for node, (rows, columns) in zip(linears, sizes, strict=True):
            attributes = {name: a.value for name, a in node.attributes.items()}
            assert attributes == {
                "N": rows,
                "K": columns,
                "bits": form.bits,
                "block_size": form.block,
                "accuracy_level": 4,
            }
            assert all(v.graph is model.graph for v in node.inputs[1:] if v is not None)


@pytest.mark.parametrize("form", [INT8, INT4], ids=str)
def test_an_experts_bytes_are_a_slice_of_qmoes(bound: Bound, form: Format) -> None:
    whole = fused(bound(), form).graph.initializers
    parts = routed(bound(), form).graph.initializers
    prefix = "model.layers.1.mlp.experts"
    for name in (f"gate_up_proj_int{form.bits}", "gate_up_proj_scales", "down_proj_bias"):
        kept = whole[f"{prefix}.{name}"].const_value.numpy()
        for expert in range(EXPERTS):
            part = parts[f"{prefix}.{expert}.{name}"].const_value
            assert isinstance(part, Part)
            np.testing.assert_array_equal(part.numpy().reshape(kept[0].shape), kept[expert])


@pytest.mark.parametrize("form", [INT8, INT4], ids=str)
def test_numbers_are_qmoes(bound: Bound, form: Format) -> None:
    assert difference(computed(routed(bound(), form)), computed(fused(bound(), form))) <= ROUNDING


def test_an_expert_nobody_chose_adds_nothing(bound: Bound) -> None:
    def without_the_second(model: ir.Model) -> ir.Model:
        for layer in range(LAYERS):
            value = model.graph.initializers[f"model.layers.{layer}.mlp.router.bias"]
            bias = value.const_value.numpy().copy()
            bias[1] = -1e4
            value.const_value = ir.Tensor(bias, name=value.name)
        return model

    models = [lower(without_the_second(bound()), INT8) for lower in (routed, fused)]
    assert difference(*map(computed, models)) <= ROUNDING


def swap_experts(model: ir.Model) -> None:
    layer = [c for c in nodes(model, "If") if ".layers.0." in str(c.outputs[0].name)]
    first, second = (c.attributes["then_branch"].value for c in layer[:2])
    downs = [[n for n in g if n.op_type == "MatMulNBits"][1] for g in (first, second)]
    kept = [downs[0].inputs[1], downs[1].inputs[1]]
    downs[0].replace_input_with(1, kept[1])
    downs[1].replace_input_with(1, kept[0])


def widen_limit(model: ir.Model) -> None:
    least = model.graph.initializers["constant.scalar_-7.0"]
    least.const_value = ir.Tensor(np.float32(-0.5), name=least.name)


def swap_gate_and_up(model: ir.Model) -> None:
    branch = nodes(model, "If")[0].attributes["then_branch"].value
    (split,) = (node for node in branch if node.op_type == "Split")
    gate, up = split.outputs
    users = [(list(v.uses()), w) for v, w in ((gate, up), (up, gate))]
    for uses, other in users:
        for node, place in uses:
            node.replace_input_with(place, other)


@pytest.mark.parametrize("damage", [swap_experts, widen_limit, swap_gate_and_up])
def test_canary(bound: Bound, damage: Callable[[ir.Model], None]) -> None:
    wanted = computed(fused(bound(), INT8))
    model = routed(bound(), INT8)
    damage(model)
    assert difference(computed(model), wanted) > 10 * ROUNDING


def test_experts_that_are_not_integers_are_left(model: ir.Model) -> None:
    changes = ["layers.0.experts=fp32", "layers.2.experts=mxfp4"]
    quantization = Quantization.parse("int4", changes)
    assert RouteExperts(quantization)(model) == 1
    assert LowerMoE(quantization)(model) == LAYERS - 1
    assert Counter(node.op_type for node in model.graph)["If"] == EXPERTS
