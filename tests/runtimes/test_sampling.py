"""Sampling against transformers' filters, a brute-force draw, and SplitMix64's published values."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import generation as hf

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.sampling import Sampler, Sampling, SplitMix64

V = 5000


def logits(seed: int = 0, spread: float = 2.0, size: int = V) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def hf_probabilities(scores: NDArray[Any], sampling: Sampling, seen: list[int]) -> NDArray[Any]:
    """What transformers would sample from, by its own processors in its own order."""
    processors: list[Any] = []
    if sampling.repetition_penalty != 1:
        processors.append(hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(hf.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        processors.append(hf.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(hf.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(hf.MinPLogitsWarper(sampling.min_p))
    values, ids = torch.tensor(scores, dtype=torch.float64)[None], torch.tensor([seen])
    for processor in processors:
        values = processor(ids, values)
    return np.asarray(values.softmax(-1)[0].numpy())


def draw(probabilities: NDArray[Any], u: float) -> int:
    """The inverse CDF over all tokens, likeliest first, lower id first of two equals."""
    order = np.lexsort((np.arange(len(probabilities)), -probabilities))
    running = np.cumsum(probabilities[order])
    return int(order[min(np.searchsorted(running, u, side="right"), len(order) - 1)])


def test_splitmix64_matches_its_published_sequence() -> None:
    first = SplitMix64(0)
    assert [first.next() for _ in range(3)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip
    assert SplitMix64(1234567).next() == 6457827717110365317
    assert SplitMix64(0).uniform() == 0xE220A8397B1DCDAF // 2**11 / 2**53


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 40},
        {"top_p": 0.9},
        {"top_p": 0.05},
        {"min_p": 0.1},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.02},
        {"top_k": 3000, "top_p": 0.99},  # more than the first partition holds
        {"repetition_penalty": 1.3, "top_p": 0.7},
        {"repetition_penalty": 0.5, "temperature": 2.0},
        {"top_k": V + 5},
        {"top_k": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.1, 2.0], ids=["flat", "peaked"])
def test_draws_as_transformers_would(settings: dict[str, Any], spread: float) -> None:
    sampling = Sampling(seed=11, **settings)
    prompt = [int(i) for i in logits(99, spread).argsort()[-20:]]
    sampler, uniforms, seen = Sampler(sampling, prompt), SplitMix64(11), list(prompt)
    for step in range(60):
        scores = logits(step % 3 + 99, spread)
        expected = draw(hf_probabilities(scores, sampling, seen), uniforms.uniform())
        assert sampler.next(scores) == expected
        seen.append(expected)


def test_filters_keep_what_transformers_keeps() -> None:
    """The extremes of u reach both ends of what is kept."""
    sampling = Sampling(top_k=30, top_p=0.8, min_p=0.05)
    scores = logits(3)
    probabilities = hf_probabilities(scores, sampling, [0])
    kept = np.flatnonzero(probabilities)
    for u, end in ((0.0, probabilities.max()), (1 - 2**-53, probabilities[kept].min())):
        sampler = Sampler(sampling, [])
        sampler._random.uniform = lambda u=u: u  # type: ignore[method-assign, misc]
        assert probabilities[sampler.next(scores)] == end


@pytest.mark.parametrize(
    ("u", "sampling", "token"),
    [
        (0.5, Sampling(), 2),  # the first token at which the running total exceeds u
        (0.99, Sampling(top_p=0.5), 1),  # the third has half the mass before it: dropped
        (0.99, Sampling(top_p=0.51), 2),
        (0.0, Sampling(), 0),
        (1 - 2**-53, Sampling(top_p=1e-300, min_p=1.0), 0),
    ],
)
def test_exact_boundaries(u: float, sampling: Sampling, token: int) -> None:
    sampler = Sampler(sampling, [])
    sampler._random.uniform = lambda: u  # type: ignore[method-assign]
    assert sampler.next(np.zeros(4, np.float32)) == token


def test_equal_scores_go_by_id() -> None:
    flat = np.zeros(1000, np.float32)
    assert Sampler(Sampling(temperature=0), []).next(flat) == 0
    for seed in range(20):
        u = SplitMix64(seed).uniform()
        assert Sampler(Sampling(seed=seed), []).next(flat) == int(u * 1000)
        # transformers keeps every score that equals the k-th
        assert Sampler(Sampling(seed=seed, top_k=1), []).next(flat) == int(u * 1000)


def test_greedy() -> None:
    scores = logits(5)
    best = int(scores.argmax())
    assert Sampler(Sampling(temperature=0), []).next(scores) == best
    assert Sampler(Sampling(do_sample=False), []).next(scores) == best
    penalized = Sampler(Sampling(temperature=0, repetition_penalty=50.0), [best])
    assert penalized.next(scores) == int(np.argsort(scores)[-2])
    assert penalized.next(scores) == int(np.argsort(scores)[-3])  # its own token is penalized too


def test_the_seed_decides() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), [])
        return [sampler.next(logits(1, 0.5)) for _ in range(12)]

    assert tokens(5) == tokens(5) != tokens(6)
    assert tokens(None) != tokens(None)


def test_logits_are_left_alone() -> None:
    scores = logits(2)
    before = scores.copy()
    Sampler(Sampling(repetition_penalty=2.0, top_k=5, temperature=0.3), [1, 2]).next(scores)
    assert (scores == before).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(bad: float, temperature: float) -> None:
    scores = logits(2)
    scores[77] = bad
    with pytest.raises(ValueError, match="logits are broken: token 77"):
        Sampler(Sampling(temperature=temperature), []).next(scores)


def test_a_tiny_temperature_is_greedy() -> None:
    scores = logits(4)
    assert Sampler(Sampling(temperature=1e-12, seed=1), []).next(scores) == int(scores.argmax())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_k", -2), ("top_k", 1.5), ("top_p", 0.0), ("top_p", 1.01), ("min_p", -0.1),
        ("min_p", 1.1), ("repetition_penalty", 0.0), ("seed", -1), ("seed", 2**64), ("seed", 0.5),
        ("temperature", "0.7"), ("temperature", None), ("top_p", True), ("min_p", [1]),
        ("repetition_penalty", "1"), ("top_k", "5"), ("top_k", True), ("do_sample", "no"),
    ],
)  # fmt: skip
def test_values_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} is {re.escape(str(value))}: it must be "):
        Sampling(**{name: value})


def test_top_k_of_minus_one_is_off() -> None:
    """As in other tools."""
    scores = logits(4)
    off, minus_one = (Sampler(Sampling(top_k=k, seed=3), []) for k in (0, -1))
    assert [off.next(scores) for _ in range(9)] == [minus_one.next(scores) for _ in range(9)]
