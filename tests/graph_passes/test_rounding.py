"""rtn, search and gptq: which error each makes smaller, the same sizes, what each asks for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_onnx.graph_passes.blockwise import dequantize_blocks, quantize_blocks, round_to_nearest
from gptoss_onnx.graph_passes.gptq import Gptq
from gptoss_onnx.graph_passes.quantization import INT4, INT8, Format
from gptoss_onnx.graph_passes.rounding import BORROWED_TOKENS, SEARCH, Rounding, Statistics
from gptoss_onnx.runtimes.errors import UserError

Float = NDArray[np.float32]
NAME, EXPERTS = "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.experts.gate_up_proj"
N, K, TOKENS = 48, 128, 2000


def inputs(seed: int = 1, tokens: int = TOKENS) -> Float:
    """Correlated, and of very different size from channel to channel [tokens, K]."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, K // 4)) @ rng.standard_normal((K // 4, K))
    noise = rng.standard_normal((tokens, K))
    return np.asarray((mixed + noise) * np.exp(1.5 * rng.standard_normal(K)), np.float32)


def statistics(x: Float) -> Statistics:
    return Statistics({NAME: np.array(len(x))}, {NAME: (x * x).sum(0)}, {NAME: x.T @ x})


@pytest.fixture(scope="module")
def weight() -> Float:
    return np.random.default_rng(0).standard_normal((N, K), np.float32)


@pytest.fixture(scope="module")
def seen() -> Float:
    return inputs()


def output_error(weight: Float, x: Float, rounding: Rounding, block: int = 32) -> float:
    """Squared error of x W^T, as a share of its square."""
    codes, scales = rounding.rounder(NAME, Format("int", 4, block))(weight)
    wrong = dequantize_blocks(codes, scales, 4, block, K) - weight
    return float(((x @ wrong.T) ** 2).sum() / ((x @ weight.T) ** 2).sum())


def errors(weight: Float, x: Float, known: Statistics) -> dict[str, float]:
    methods = {
        "rtn": Rounding("rtn"),
        "search": SEARCH,
        "weighted": Rounding("search", known),
        "gptq": Rounding("gptq", known),
    }
    return {name: output_error(weight, x, rounding) for name, rounding in methods.items()}


def test_each_method_does_better_on_what_the_weights_are_multiplied_by(
    weight: Float, seen: Float
) -> None:
    found = errors(weight, seen, statistics(seen))
    assert found["search"] < 0.95 * found["rtn"]
    assert found["weighted"] < 0.8 * found["search"]
    assert found["gptq"] < 0.5 * found["search"]
    # New tokens of the same kind: what is learned is not the tokens themselves.
    x, new = np.split(inputs(tokens=2 * TOKENS), 2)
    assert errors(weight, new, statistics(x))["gptq"] < 0.5 * found["search"]


def test_statistics_of_other_channels_do_worse_than_none(weight: Float, seen: Float) -> None:
    """The canary: were channels mixed up on their way, the test above would see it."""
    order = np.random.default_rng(4).permutation(K)
    found = errors(weight, seen, statistics(seen[:, order]))
    assert found["weighted"] > found["search"]
    assert found["gptq"] > found["search"]


@pytest.mark.parametrize("block", [16, 32, 128])
def test_sizes_are_those_of_rounding_to_nearest(weight: Float, seen: Float, block: int) -> None:
    form = Format("int", 4, block)
    known = statistics(seen)
    made = [
        Rounding(method, stats).rounder(NAME, form)(weight)
        for method, stats in [("rtn", None), ("search", None), ("search", known), ("gptq", known)]
    ]
    assert {(c.shape, c.dtype.str, s.shape, s.dtype.str) for c, s in made} == {
        ((N, K // 2), "|u1", (N, K // block), "<f4")
    }


@pytest.mark.parametrize("columns", [100, 31])
def test_gptq_of_a_last_partial_block_ends_in_zeros(
    weight: Float, seen: Float, columns: int
) -> None:
    x, part = seen[:, :columns], weight[:, :columns]
    codes, scales = Gptq(x.T @ x, 32)(part)
    expected, expected_scales = quantize_blocks(part, 4, 32)
    assert codes.shape == expected.shape and scales.shape == expected_scales.shape
    values = dequantize_blocks(codes, scales, 4, 32, scales.shape[1] * 32)
    assert not values[:, columns:].any()
    before = x @ (dequantize_blocks(expected, expected_scales, 4, 32, columns) - part).T
    assert (((x @ (values[:, :columns] - part).T) ** 2).sum()) < 0.7 * (before**2).sum()


def test_gptq_rounds_rows_alone_as_it_does_together(weight: Float, seen: Float) -> None:
    """A matrix arrives in chunks; a chunk's codes must not depend on where it was cut."""
    whole = Gptq(seen.T @ seen, 32)(weight)
    cut = Gptq(seen.T @ seen, 32)
    parts = [cut(weight[:20]), cut(weight[20:])]
    codes, scales = (np.concatenate(made) for made in zip(*parts, strict=True))
    # Float32 sums in another order decide what is near a tie.
    assert np.mean(codes != whole[0]) < 0.05
    assert np.mean(~np.isclose(scales, whole[1], rtol=1e-3)) < 0.05


def test_gptq_of_channels_that_are_always_zero(weight: Float, seen: Float) -> None:
    x = seen.copy()
    x[:, 5:70] = 0
    known = statistics(x)
    assert output_error(weight, x, Rounding("gptq", known)) < output_error(weight, x, SEARCH)


def test_without_correlations_gptq_is_the_weighted_search(weight: Float) -> None:
    diagonal = np.exp(np.random.default_rng(2).standard_normal(K)).astype(np.float32)
    codes, scales = Gptq(np.diag(diagonal), 32)(weight)
    damped = diagonal + np.float32(0.01) * diagonal.mean()
    expected, expected_scales = quantize_blocks(weight, 4, 32, damped)
    assert np.mean(codes != expected) < 0.02  # codes of the winner's own step, not of its scale
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-4)


def test_equal_importance_is_no_importance(weight: Float) -> None:
    plain, scales = quantize_blocks(weight, 4, 32)
    codes, same = quantize_blocks(weight, 4, 32, np.full(K, 3e20, np.float32))
    assert np.mean(codes != plain) < 0.001
    np.testing.assert_allclose(same, scales, rtol=1e-2)


def test_rounding_to_nearest_by_hand() -> None:
    weight = np.array([[-4, 3.9, 1.24, 0.26, 0, 0.24, -0.26, 4]], np.float32)
    codes, scales = round_to_nearest(weight, 8)
    assert scales.tolist() == [[0.5]]
    expected = [-4, 3.5, 1, 0.5, 0, 0, -0.5, 3.5]  # +8 does not fit and clips
    assert dequantize_blocks(codes, scales, 4, 8, 8).tolist() == [expected]


def experts(counts: list[int]) -> Statistics:
    """Experts that saw the first `counts` rows of inputs of their own."""
    rows = [inputs(seed)[:count] for seed, count in enumerate(counts)]
    grams = np.stack([x.T @ x for x in rows])
    moments = np.stack([(x * x).sum(0) for x in rows])
    return Statistics(
        {EXPERTS: np.array(counts)}, {EXPERTS: moments}, {EXPERTS: grams}, {EXPERTS: grams.sum(0)}
    )


@pytest.mark.parametrize("method", ["search", "gptq"])
def test_an_expert_without_tokens_is_rounded_as_without_calibration(
    weight: Float, method: str
) -> None:
    known = experts([50, 0])
    assert known.unrouted == (1, 2)
    rounding = Rounding(method, known)
    assert rounding.decodes(EXPERTS, INT4, 0) and not rounding.decodes(EXPERTS, INT4, 1)
    plain = quantize_blocks(weight, 4, 32)
    for part, same in zip(rounding.rounder(EXPERTS, INT4, 1)(weight), plain, strict=True):
        np.testing.assert_array_equal(part, same)
    assert (rounding.rounder(EXPERTS, INT4, 0)(weight)[0] != plain[0]).any()


def test_an_expert_borrows_tokens_of_the_others(weight: Float) -> None:
    known = experts([1000, 3])
    gram = known.grams[EXPERTS]
    expected = gram[1] + BORROWED_TOKENS / 1003 * gram.sum(0)
    codes, scales = Rounding("gptq", known).rounder(EXPERTS, INT4, 1)(weight)
    direct = Gptq(expected, 32)(weight)
    assert np.mean(codes != direct[0]) < 0.01
    np.testing.assert_allclose(np.abs(scales), np.abs(direct[1]), rtol=0.2)


@pytest.mark.parametrize("method", ["rtn", "search", "gptq"])
def test_eight_bits_are_the_same_by_every_method(weight: Float, seen: Float, method: str) -> None:
    made = Rounding(method, statistics(seen)).rounder(NAME, INT8)(weight)
    for ours, expected in zip(made, quantize_blocks(weight, 8, 32), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_refusals() -> None:
    with pytest.raises(UserError, match="give --calibrate FILE"):
        Rounding("gptq")
    with pytest.raises(UserError, match="no method 'awq'; there are rtn, search, gptq"):
        Rounding("awq")
