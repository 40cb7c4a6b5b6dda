"""RMSNorm fusion: how many, with which numbers, and what is left alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_onnx.graph_passes.fuse_norms import RMS_NORM, SKIP_RMS_NORM
from tests.graph_passes.conftest import LAYERS, TOLERANCE, computed, difference, nodes, ops

NORMS = 2 * LAYERS + 1


def test_every_norm_is_fused(model: ir.Model, oracle: list[NDArray[np.float32]]) -> None:
    assert RMS_NORM.apply_to_model(model) == NORMS
    fused = nodes(model, "SimplifiedLayerNormalization")
    assert len(fused) == NORMS
    assert not ops(model).keys() & {"Pow", "ReduceMean", "Sqrt", "Reciprocal", "Mul"}
    for node in fused:
        assert node.domain == ""
        assert np.float32(node.attributes.get_float("epsilon")) == np.float32(1e-5)
        assert node.attributes.get_int("axis") == -1
        assert str(node.inputs[1].name).endswith("norm.weight")
    assert difference(computed(model), oracle) <= TOLERANCE


def test_every_norm_but_the_first_takes_the_sum_before_it(
    model: ir.Model, oracle: list[NDArray[np.float32]]
) -> None:
    RMS_NORM.apply_to_model(model)
    assert SKIP_RMS_NORM.apply_to_model(model) == NORMS - 1
    assert ops(model)["SkipSimplifiedLayerNormalization"] == NORMS - 1
    (first,) = nodes(model, "SimplifiedLayerNormalization")
    assert str(first.inputs[0].producer().op_type) == "Gather"
    for node in nodes(model, "SkipSimplifiedLayerNormalization"):
        assert node.domain == "com.microsoft"
        assert np.float32(node.attributes.get_float("epsilon")) == np.float32(1e-5)
    # Residual sums are gone; the Adds that stay are biases.
    assert all(any(v.is_initializer() for v in node.inputs) for node in nodes(model, "Add"))
    assert difference(computed(model), oracle) <= TOLERANCE


def test_a_mean_over_another_axis_is_no_rmsnorm(model: ir.Model) -> None:
    mean = nodes(model, "ReduceMean")[0]
    axes = mean.inputs[1]
    axes.const_value = ir.Tensor(np.array([1]), name=axes.name)
    assert RMS_NORM.apply_to_model(model) == NORMS - 1


def test_a_norm_with_a_computed_weight_is_left(model: ir.Model) -> None:
    scale = nodes(model, "Mul")[1]
    assert str(scale.inputs[0].name).endswith("input_layernorm.weight")
    doubled = ir.node("Add", [scale.inputs[0], scale.inputs[0]])
    model.graph.insert_before(scale, doubled)
    scale.replace_input_with(0, doubled.outputs[0])
    assert RMS_NORM.apply_to_model(model) == NORMS - 1


def test_a_norm_whose_epsilon_is_computed_is_left(model: ir.Model) -> None:
    root = nodes(model, "Sqrt")[0]
    add = root.inputs[0].producer()
    doubled = ir.node("Add", [add.inputs[1], add.inputs[1]])
    model.graph.insert_before(add, doubled)
    add.replace_input_with(1, doubled.outputs[0])
    assert RMS_NORM.apply_to_model(model) == NORMS - 1
