"""ai.gptoss::MoE -> MoE and QMoE: attributes, inputs, the weights' bytes, numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.lower_moe import LowerMoE
from gptoss_onnx.graph_passes.quantization import FP32, INT4, INT8, MXFP4, Format, uniform
from gptoss_onnx.runtimes.errors import UserError
from tests.graph_passes.conftest import LAYERS, TOLERANCE, computed, difference, nodes

EXPERTS = "model.layers.1.mlp.experts"
SWIGLU = {
    "k": 2,
    "normalize_routing_weights": 1,
    "activation_type": "swiglu",
    "activation_alpha": pytest.approx(1.702),
    "activation_beta": 1.0,
    "swiglu_limit": 7.0,
    "swiglu_fusion": 1,
}
INT = {"quant_type": "int", "weights_prepacked": 0, "accuracy_level": 4}
FP4 = {"quant_type": "fp4", "weights_prepacked": 1, "expert_weight_bits": 4, "block_size": 32}


@pytest.mark.parametrize(
    ("form", "op", "more"),
    [
        (FP32, "MoE", {}),
        (INT8, "QMoE", {**INT, "expert_weight_bits": 8, "block_size": 32}),
        (Format("int", 4, 64), "QMoE", {**INT, "expert_weight_bits": 4, "block_size": 64}),
        (MXFP4, "QMoE", FP4),
    ],
    ids=str,
)
def test_attributes(model: ir.Model, form: Format, op: str, more: dict[str, object]) -> None:
    assert LowerMoE(uniform("test", form))(model) == LAYERS
    found = nodes(model, op)
    assert len(found) == LAYERS
    for node in found:
        assert node.domain == "com.microsoft"
        assert {name: a.value for name, a in node.attributes.items()} == SWIGLU | more
        assert node.inputs[1].producer().op_type == "Reshape"  # router logits [B * S, E]


def names(node: ir.Node) -> dict[int, str]:
    """The inputs that are weights, by place."""
    given = enumerate(node.inputs)
    return {at: str(v.name) for at, v in given if v is not None and v.is_initializer()}


def test_float_inputs(model: ir.Model) -> None:
    LowerMoE(uniform("test", FP32))(model)
    assert names(nodes(model, "MoE")[1]) == {
        2: f"{EXPERTS}.gate_up_proj",
        3: f"{EXPERTS}.gate_up_proj_bias",
        4: f"{EXPERTS}.down_proj",
        5: f"{EXPERTS}.down_proj_bias",
    }


@pytest.mark.parametrize("form", [INT8, INT4, MXFP4], ids=str)
def test_packed_inputs(model: ir.Model, form: Format) -> None:
    LowerMoE(uniform("test", form))(model)
    given = names(nodes(model, "QMoE")[1])
    codes = {at: given.pop(at) for at in (2, 5)}
    assert codes[2].startswith(f"{EXPERTS}.gate_up_proj_{form.kind}")
    assert codes[5].startswith(f"{EXPERTS}.down_proj_{form.kind}")
    scale = {15: "experts.global_scale", 16: "experts.global_scale"}
    assert given == {
        3: f"{EXPERTS}.gate_up_proj_scales",
        4: f"{EXPERTS}.gate_up_proj_bias",
        6: f"{EXPERTS}.down_proj_scales",
        7: f"{EXPERTS}.down_proj_bias",
    } | (scale if form is MXFP4 else {})
    assert not [name for name in model.graph.initializers if name.endswith("_proj")]


def test_mxfp4_passes_through_byte_for_byte(model: ir.Model, checkpoint: Checkpoint) -> None:
    LowerMoE(uniform("test", MXFP4))(model)
    node = nodes(model, "QMoE")[1]
    for which, at in (("gate_up_proj", 2), ("down_proj", 5)):
        packed, scales = (value.const_value for value in node.inputs[at : at + 2])
        source = checkpoint.expert_weight(1, which)
        assert (packed.origin, scales.origin) == (source.blocks, source.scales)
        blocks = np.concatenate([chunk.reshape(-1) for chunk in packed.chunks()])
        np.testing.assert_array_equal(blocks, source.blocks.read().reshape(-1))
        np.testing.assert_array_equal(scales.numpy().view(np.uint8), source.scales.read())
        assert scales.dtype == ir.DataType.FLOAT8E8M0


def by_row(node: ir.Node) -> None:
    """CUDA's order of the codes back into the CPU kernel's, from the bytes that are written."""
    for place in (2, 5):
        value = node.inputs[place]
        columns = value.const_value.numpy()  # [E, K, N/2]
        rows = np.stack([mxfp4.transposed_codes(expert) for expert in columns])
        value.const_value = ir.Tensor(rows, name=value.name)
        value.shape = ir.Shape(rows.shape)
    node.attributes["weights_prepacked"] = ir.AttrInt64("weights_prepacked", 1)


def test_mxfp4_by_column_is_exact(model: ir.Model, checkpoint: Checkpoint) -> None:
    """The same codes turned around, expert by expert; the scales as they are stored."""
    LowerMoE(uniform("test", MXFP4), fp4_by_column=True)(model)
    node = nodes(model, "QMoE")[1]
    assert {n: a.value for n, a in node.attributes.items()} == SWIGLU | {
        "quant_type": "fp4",
        "expert_weight_bits": 4,
        "block_size": 32,
    }
    for which, at in (("gate_up_proj", 2), ("down_proj", 5)):
        packed, scales = (value.const_value for value in node.inputs[at : at + 2])
        source = checkpoint.expert_weight(1, which)
        experts, rows, columns = source.shape
        assert packed.name == f"{EXPERTS}.{which}_mxfp4_columns"  # not the CPU's bytes
        assert (packed.origin, scales.origin) == (None, None)
        chunks = list(packed.chunks())
        assert [chunk.shape for chunk in chunks] == [(columns, rows // 2)] * experts
        back = np.stack([mxfp4.transposed_codes(chunk) for chunk in chunks])
        np.testing.assert_array_equal(back.reshape(-1), source.blocks.read().reshape(-1))
        np.testing.assert_array_equal(scales.numpy().view(np.uint8), source.scales.read())


def test_mxfp4_by_column_numbers(model: ir.Model, oracle: list[NDArray[np.float32]]) -> None:
    LowerMoE(uniform("test", MXFP4), fp4_by_column=True)(model)
    for node in nodes(model, "QMoE"):
        by_row(node)
    assert difference(computed(model), oracle) <= TOLERANCE


def test_canary_codes_in_the_other_order_show(
    model: ir.Model, oracle: list[NDArray[np.float32]]
) -> None:
    """The bytes of one order read as the other: square experts would hide a mere reshape."""
    LowerMoE(uniform("test", MXFP4), fp4_by_column=True)(model)
    for node in nodes(model, "QMoE"):
        for place in (2, 5):
            value = node.inputs[place]
            experts, columns, half = value.const_value.shape.numpy()
            array = value.const_value.numpy().reshape(experts, 2 * half, columns // 2)
            value.const_value = ir.Tensor(array, name=value.name)
            value.shape = ir.Shape(array.shape)
        node.attributes["weights_prepacked"] = ir.AttrInt64("weights_prepacked", 1)
    assert difference(computed(model), oracle) > 20 * TOLERANCE


def test_int8_is_exact(model: ir.Model, checkpoint: Checkpoint) -> None:
    LowerMoE(uniform("test", INT8))(model)
    codes, scales = (
        model.graph.initializers[f"{EXPERTS}.down_proj_{part}"].const_value.numpy()
        for part in ("int8", "scales")
    )
    values = (codes.astype(np.float32) - 128) * np.repeat(scales, 32, axis=-1)
    source = checkpoint.expert_weight(1, "down_proj")
    expected = np.stack([mxfp4.decode(*source.read(expert)) for expert in range(len(codes))])
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("form", [FP32, MXFP4], ids=str)
def test_numbers(model: ir.Model, oracle: list[NDArray[np.float32]], form: Format) -> None:
    LowerMoE(uniform("test", form))(model)
    assert difference(computed(model), oracle) <= TOLERANCE


def test_canary_another_limit_shows(model: ir.Model, oracle: list[NDArray[np.float32]]) -> None:
    LowerMoE(uniform("test", FP32))(model)
    for node in nodes(model, "MoE"):
        node.attributes["swiglu_limit"] = ir.AttrFloat32("swiglu_limit", 1.0)
    assert difference(computed(model), oracle) > 20 * TOLERANCE


def test_blocks_that_do_not_divide_are_refused(model: ir.Model) -> None:
    with pytest.raises(UserError, match="64 input features are not whole blocks of 128"):
        LowerMoE(uniform("test", Format("int", 8, 128)))(model)
