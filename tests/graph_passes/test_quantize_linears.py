"""Linears in their final form: how many, in which format, with which numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.graph_passes.blockwise import dequantize_blocks
from gptoss_onnx.graph_passes.lower_attention import LowerAttention
from gptoss_onnx.graph_passes.quantization import FP32, INT4, INT8_64, Format, Quantization, uniform
from gptoss_onnx.graph_passes.quantize_embedding import QuantizeEmbedding
from gptoss_onnx.graph_passes.quantize_linears import QuantizeLinears
from tests.graph_passes.conftest import LAYERS, TOLERANCE, computed, difference, nodes, ops

LINEARS = 2 * LAYERS + 1  # o_proj and router a layer, lm_head


@pytest.fixture
def lowered(model: ir.Model) -> ir.Model:
    """Without q, k and v, which go with attention."""
    LowerAttention(uniform("test", FP32), [None] * LAYERS)(model)
    return model


def test_float_linears_lose_their_transpose(
    lowered: ir.Model, oracle: list[NDArray[np.float32]]
) -> None:
    assert QuantizeLinears(Quantization.parse("fp32"))(lowered) == LINEARS
    assert "Transpose" not in ops(lowered) and "MatMulNBits" not in ops(lowered)
    assert not [name for name in lowered.graph.initializers if "traced" in name]
    assert difference(computed(lowered), oracle) <= TOLERANCE


@pytest.mark.parametrize("preset", ["int8", "int4", "mxfp4"])
def test_the_router_stays_in_float(lowered: ir.Model, preset: str) -> None:
    assert QuantizeLinears(Quantization.parse(preset))(lowered) == LINEARS
    routers = [n for n in nodes(lowered, "MatMul") if "router" in str(n.inputs[1].name)]
    assert len(routers) == LAYERS
    assert all(node.inputs[1].dtype == ir.DataType.FLOAT for node in routers)
    assert ops(lowered)["MatMulNBits"] == LAYERS + 1


def test_each_group_has_its_own_format(lowered: ir.Model, checkpoint: Checkpoint) -> None:
    QuantizeLinears(Quantization.parse("int4", ["lm_head=int8:16"]))(lowered)
    *outs, head = nodes(lowered, "MatMulNBits")
    assert (head.name, [node.name for node in outs]) == (
        "lm_head",
        [f"model.layers.{layer}.self_attn.o_proj" for layer in range(LAYERS)],
    )
    expected = {"K": 64, "N": 512, "accuracy_level": 4, "bits": 8, "block_size": 16}
    assert {name: a.value for name, a in head.attributes.items()} == expected
    expected = {"K": 128, "N": 64, "accuracy_level": 4, "bits": 4, "block_size": 32}
    assert all({n: a.value for n, a in node.attributes.items()} == expected for node in outs)
    assert len(head.inputs) == 3  # no bias
    assert [str(v.name).rpartition(".")[2] if v else None for v in outs[0].inputs] == [
        str(outs[0].inputs[0].name).rpartition(".")[2],
        "weight_q4",
        "scales",
        None,
        None,
        "bias",
    ]
    codes, scales = (value.const_value.numpy() for value in head.inputs[1:])
    assert (codes.shape, scales.shape) == ((512, 4, 16), (512, 4))
    values = dequantize_blocks(codes.reshape(512, -1), scales, 8, 16, 64)
    weight = checkpoint.tensors["lm_head.weight"].read().astype(np.float32)
    step = np.repeat(np.abs(scales), 16, axis=-1)
    # Half a step, and a whole one where the extreme of the other sign clips (blockwise._solve8).
    error = np.abs(values - weight) / step
    assert error.max() <= 1 + 1e-5 and np.mean(error <= 0.5 + 1e-5) > 0.99


def test_the_embedding_is_quantized_once(model: ir.Model) -> None:
    assert QuantizeEmbedding(INT4)(model) == 1
    (gather,) = nodes(model, "GatherBlockQuantized")
    codes, ids, scales = gather.inputs
    assert (list(codes.shape), list(scales.shape)) == ([512, 32], [512, 2])
    assert ids is model.graph.inputs[0]
    assert "model.embed_tokens.weight" not in model.graph.initializers


def test_quantized_rows_are_the_rows_of_the_table(model: ir.Model, checkpoint: Checkpoint) -> None:
    """In ONNX Runtime: what the gather reads is the table, to half a step of its int8 blocks."""
    QuantizeEmbedding(INT8_64)(model)
    (gather,) = nodes(model, "GatherBlockQuantized")
    model.graph.outputs[0] = gather.outputs[0]
    rows, *_ = computed(model)
    ids = np.random.default_rng(3).integers(0, 512, (2, 5))  # as `computed` feeds them
    table = checkpoint.tensors["model.embed_tokens.weight"].read().astype(np.float32)[ids]
    step = np.abs(table).reshape(2, 5, -1, 64).max(-1, keepdims=True) / 128
    error = np.abs(rows - table).reshape(2, 5, -1, 64) / step
    assert error.max() <= 1 + 1e-5 and np.mean(error <= 0.5 + 1e-5) > 0.99


@pytest.mark.parametrize("form", [INT4, INT8_64], ids=str)
def test_zero_points_for_a_kernel_that_takes_missing_ones_for_0(
    model: ir.Model, checkpoint: Checkpoint, traced: ir.Model, form: Format
) -> None:
    """The middle of the codes: what the CPU's kernel takes them for when they are missing."""
    without = traced.clone()
    bind(without, checkpoint)
    QuantizeEmbedding(form)(without)
    QuantizeEmbedding(form, zero_points=True)(model)
    zeros = nodes(model, "GatherBlockQuantized")[0].inputs[3].const_value.numpy()
    blocks = -(-64 // form.block)
    assert zeros.shape == (512, -(-blocks * form.bits // 8))
    assert np.unique(zeros) == [0x88 if form.bits == 4 else 0x80]
    for ours, theirs in zip(computed(model), computed(without), strict=True):
        np.testing.assert_array_equal(ours, theirs)
