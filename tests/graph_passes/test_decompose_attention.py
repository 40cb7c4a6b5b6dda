"""WindowedAttention -> standard operators: the portable graph's numbers, holes included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.graph_passes.decompose_attention import HIDDEN_SCORE, DecomposeAttention
from gptoss_onnx.graph_passes.quantization import FP32, INT8, uniform
from tests.graph_passes.conftest import (
    LAYERS,
    TOLERANCE,
    WINDOW,
    computed,
    difference,
    nodes,
    ops,
)

VOCAB = 512


def decomposed(model: ir.Model) -> ir.Model:
    assert DecomposeAttention(uniform("test", FP32))(model) == LAYERS
    return model


def test_what_is_made_of_a_layer_and_what_once(model: ir.Model) -> None:
    before = ops(model)
    found = ops(decomposed(model))
    assert found["WindowedAttention"] == 0
    for op in ("RotaryEmbedding", "FusedMatMul", "Softmax", "Where", "Expand"):
        assert found[op] - before[op] == LAYERS
    once = {"CumSum": 1, "LessOrEqual": 1, "Greater": 1, "Less": 1, "And": 2, "Range": 1}
    assert {op: found[op] for op in once} == once  # two sliding layers, one window


def test_numbers(model: ir.Model, oracle: list[NDArray[np.float32]]) -> None:
    """24 tokens in the cache, 5 new ones, a window of 16."""
    assert difference(computed(decomposed(model)), oracle) <= TOLERANCE


def test_global_tokens(model: ir.Model) -> None:
    for node in nodes(model, "WindowedAttention"):
        node.attributes["num_global_tokens"] = ir.AttrInt64("num_global_tokens", 4)
    oracle = computed(model.clone())
    assert difference(computed(decomposed(model)), oracle) <= TOLERANCE


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    for value in model.graph.initializers.values():
        stored = value.const_value
        value.const_value = ir.Tensor(stored.numpy(), dtype=stored.dtype, name=value.name)
    model.opset_imports["com.microsoft"] = 1
    return onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )


def fed(
    model: ir.Model, chunks: list[NDArray[np.int64]], masks: list[NDArray[np.int64]]
) -> list[NDArray[np.float32]]:
    """Logits [B, S, V] of each chunk, the cache handed on from one to the next."""
    graph = session(model)
    names = [value.name for value in graph.get_outputs()]
    past = {
        value.name: np.zeros((len(chunks[0]), value.shape[1], 0, value.shape[3]), np.float32)
        for value in graph.get_inputs()[2:]
    }
    logits = []
    for end in range(1, len(chunks) + 1):
        mask = np.concatenate(masks[:end], axis=1)
        feeds = {"input_ids": chunks[end - 1], "attention_mask": mask, **past}
        out = dict(zip(names, graph.run(None, feeds), strict=True))
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
        logits.append(out["logits"])
    return logits


def pieces(sizes: list[int], batch: int = 2) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, VOCAB, (batch, size)) for size in sizes]


@pytest.mark.parametrize("holes", [False, True])
def test_chunks_and_steps_past_the_window(model: ir.Model, holes: bool) -> None:
    """Prefill in chunks, then decode; with holes, rows get different numbers of tokens."""
    sizes = [21, 13, 9, 1, 1, 1]
    chunks, masks = pieces(sizes), [np.ones((2, size), np.int64) for size in sizes]
    if holes:
        masks[0][1, 14:], masks[1][0, 5:], masks[1][1, 12:] = 0, 0, 0
        masks[2][0, :] = 0  # a row that waits
        masks[4][1, :] = 0
    wanted = fed(model.clone(), chunks, masks)
    ours = fed(decomposed(model), chunks, masks)
    for mask, a, b in zip(masks, ours, wanted, strict=True):
        tokens = mask > 0
        assert tokens.any()
        assert difference([a[tokens]], [b[tokens]]) <= TOLERANCE


def shorter_window(model: ir.Model) -> None:
    value = model.graph.initializers[f"constant.scalar_{WINDOW}"]
    value.const_value = ir.Tensor(np.array(WINDOW - 1), name=value.name)


def no_window(model: ir.Model) -> None:
    value = model.graph.initializers[f"constant.scalar_{WINDOW}"]
    value.const_value = ir.Tensor(np.array(10**6), name=value.name)


def no_sinks(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        if name.endswith(".sinks"):
            array = value.const_value.numpy()
            value.const_value = ir.Tensor(np.full_like(array, -1e9), name=name)


def zero_sinks(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        if name.endswith(".sinks"):
            array = value.const_value.numpy()
            value.const_value = ir.Tensor(np.zeros_like(array), name=name)


def no_bias(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        if name.endswith(".qkv_proj.bias"):
            array = value.const_value.numpy()
            value.const_value = ir.Tensor(np.zeros_like(array), name=name)


def another_groups_keys(model: ir.Model) -> None:
    """Heads of a group taken from those that are N / G apart."""
    for node in nodes(model, "FusedMatMul"):
        node.replace_input_with(0, swapped(model, node, node.inputs[0]))


def swapped(model: ir.Model, node: ir.Node, q: ir.Value) -> ir.Value:
    wrong = ir.node("Gather", [q, model.graph.initializers["wrong"]], {"axis": 1})
    wrong.outputs[0].name, wrong.outputs[0].dtype = f"{q.name}.wrong", ir.DataType.FLOAT
    model.graph.insert_before(node, wrong)
    return wrong.outputs[0]


@pytest.mark.parametrize(
    "damage", [shorter_window, no_window, no_sinks, zero_sinks, no_bias, another_groups_keys]
)
def test_canary(
    model: ir.Model, oracle: list[NDArray[np.float32]], damage: Callable[[ir.Model], None]
) -> None:
    decomposed(model)
    wrong = ir.Value(name="wrong", const_value=ir.Tensor(np.array([1, 0]), name="wrong"))
    model.graph.register_initializer(wrong)
    damage(model)
    assert difference(computed(model), oracle) > 20 * TOLERANCE


def test_canary_a_hole_that_is_seen(model: ir.Model) -> None:
    sizes = [21, 4]
    chunks, masks = pieces(sizes), [np.ones((2, size), np.int64) for size in sizes]
    masks[0][1, 14:] = 0
    wanted = fed(model.clone(), chunks, masks)
    for node in nodes(decomposed(model), "And"):
        if str(node.outputs[0].name) == "lengths.seen":
            node.replace_input_with(0, node.inputs[1])
    ours = fed(model, chunks, masks)
    assert difference([ours[1][1]], [wanted[1][1]]) > 20 * TOLERANCE


def test_the_score_of_what_is_hidden_is_a_half() -> None:
    assert np.isfinite(np.float16(HIDDEN_SCORE))
    assert np.exp(np.float32(HIDDEN_SCORE + 1e4)) == 0


def test_a_quantized_projection_keeps_its_bias(model: ir.Model) -> None:
    DecomposeAttention(uniform("test", INT8))(model)
    packed = nodes(model, "MatMulNBits")
    assert len(packed) == LAYERS
    assert all(str(node.inputs[5].name).endswith("qkv_proj.bias") for node in packed)


def test_the_cache_is_the_whole_sequence(model: ir.Model, spec: GptOssSpec) -> None:
    decomposed(model)
    for value in model.graph.inputs[2:]:
        assert [str(d) for d in value.shape][2] == "past"
    for value in model.graph.outputs[1:]:
        assert [str(d) for d in value.shape][2] == "total"


def test_a_graph_without_attention_is_left(model: ir.Model) -> None:
    before = ops(decomposed(model))
    assert DecomposeAttention(uniform("test", FP32))(model) == 0
    assert ops(model) == before
