"""The head sees each row's last token only: counted where rows are padded, else the last slot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.graph_passes.last_token_logits import LastTokenLogits
from gptoss_onnx.graph_passes.lower_attention import LowerAttention
from gptoss_onnx.graph_passes.lower_moe import LowerMoE
from gptoss_onnx.graph_passes.quantization import FP32, uniform
from gptoss_onnx.graph_passes.quantize_linears import QuantizeLinears
from gptoss_onnx.graph_passes.weight_role import give_role, read_role
from tests.graph_passes.conftest import LAYERS, TOLERANCE, difference, ops

FLOAT = uniform("test", FP32)
Make = Callable[..., onnxruntime.InferenceSession]


@pytest.fixture
def make(checkpoint: Checkpoint, traced: ir.Model) -> Make:
    """A graph that runs; `padded` None gives the logits of every token."""

    def session(*, padded: bool | None) -> onnxruntime.InferenceSession:
        model = traced.clone()
        bind(model, checkpoint)
        LowerAttention(FLOAT, [None] * LAYERS, query_seqlens=bool(padded))(model)
        LowerMoE(FLOAT)(model)
        if padded is not None:
            assert LastTokenLogits(padded)(model) == 1
        QuantizeLinears(FLOAT)(model)
        for value in model.graph.initializers.values():
            value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
        model.opset_imports["com.microsoft"] = 1
        model.functions.clear()
        return onnxruntime.InferenceSession(
            ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
        )

    return session


def logits(
    session: onnxruntime.InferenceSession, ids: list[int], mask: list[int], past: int
) -> np.ndarray:
    """Of one row; `past` rows of KV are random and the same for any capacity."""
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.array([mask])}
    for value in session.get_inputs()[2:]:
        rows = np.random.default_rng(len(value.name)).standard_normal((1, value.shape[1], 24, 32))
        cache = np.zeros((1, value.shape[1], past, value.shape[3]), np.float32)
        cache[:, :, : min(24, past)] = rows[:, :, : min(24, past)]
        feeds[value.name] = cache
    return session.run(["logits"], feeds)[0]


@pytest.mark.parametrize("padded", [False, True])
def test_the_last_tokens_logits(make: Make, padded: bool) -> None:
    arguments = ([5, 9, 2], [1] * 27, 24)
    every, last = logits(make(padded=None), *arguments), logits(make(padded=padded), *arguments)
    assert last.shape == (1, 1, 512)
    assert difference([last], [every[:, -1:]]) <= TOLERANCE


def test_a_padded_row(make: Make) -> None:
    """Two of three new slots are tokens."""
    every = logits(make(padded=None), [5, 9], [1] * 26, 24)
    last = logits(make(padded=True), [5, 9, 0], [1] * 26 + [0], 24)
    assert difference([last], [every[:, -1:]]) <= TOLERANCE


@pytest.mark.parametrize("new", [1, 3])
def test_a_mask_and_a_cache_of_fixed_length(make: Make, new: int) -> None:
    """What CUDA graphs want: all shapes are the capacity's, only numbers say how much is in use."""
    ids, graph = [5, 9, 2][:new], make(padded=False)
    growing = logits(graph, ids, [1] * (24 + new), 24)
    fixed = logits(graph, ids, [1] * (24 + new) + [0] * 37, 61 + new)
    assert difference([fixed], [growing]) <= TOLERANCE


def test_canary_a_count_from_the_end_of_a_fixed_mask_is_wrong(make: Make) -> None:
    graph = make(padded=True)
    growing = logits(graph, [5, 9, 2], [1] * 27, 24)
    fixed = logits(graph, [5, 9, 2], [1] * 27 + [0] * 37, 64)
    assert difference([fixed], [growing]) > 20 * TOLERANCE


def test_nothing_is_counted_for_the_last_slot(checkpoint: Checkpoint, traced: ir.Model) -> None:
    model = traced.clone()
    bind(model, checkpoint)
    LowerAttention(FLOAT, [None] * LAYERS, query_seqlens=False)(model)
    before = ops(model)
    LastTokenLogits(False)(model)
    assert ops(model) - before == {"Slice": 1}


def test_a_graph_without_a_head_is_left_alone(model: ir.Model) -> None:
    give_role(model.graph.initializers["lm_head.weight"], read_role("model.norm.weight"))
    before = ops(model)
    assert LastTokenLogits()(model) == 0
    assert LastTokenLogits(False)(model) == 0
    assert ops(model) == before


def test_a_graph_without_lengths_cannot_count(model: ir.Model) -> None:
    assert LastTokenLogits(True)(model) == 0
