"""Figures against their definitions, computed token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gptoss_onnx.evaluation.statistics import (
    Tokens,
    compare_rows,
    histogram,
    interval,
    metrics,
    router_agreement,
)

PASSAGES, EACH, VOCAB, LAYERS = 5, 40, 37, 2


def softmax(row: np.ndarray) -> list[float]:
    weights = [math.exp(float(x) - float(row.max())) for x in row]
    return [w / sum(weights) for w in weights]


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    count = PASSAGES * EACH
    reference = (rng.standard_normal((count, VOCAB)) * 4).astype(np.float32)
    return {
        "reference": reference,
        "package": (reference + rng.standard_normal(reference.shape)).astype(np.float32),
        "true": rng.integers(0, VOCAB, count),
        "routes": rng.random((count, LAYERS)) < [0.9, 0.4],
    }


@pytest.fixture(scope="module")
def tokens(data: dict[str, np.ndarray]) -> Tokens:
    parts = []
    for passage in range(PASSAGES):
        part = slice(passage * EACH, (passage + 1) * EACH)
        rows = [data[name][part] for name in ("reference", "package", "true")]
        parts.append(compare_rows(*rows, passage, np.arange(EACH), data["routes"][part]))
    return Tokens.join(parts)


def test_figures_are_their_definitions(data: dict[str, np.ndarray], tokens: Tokens) -> None:
    p = [softmax(row) for row in data["reference"]]
    q = [softmax(row) for row in data["package"]]
    kld = [
        sum(a * math.log(a / b) for a, b in zip(x, y, strict=True))
        for x, y in zip(p, q, strict=True)
    ]
    theirs = [row[true] for row, true in zip(p, data["true"], strict=True)]
    ours = [row[true] for row, true in zip(q, data["true"], strict=True)]
    count = len(kld)
    agree = [x.index(max(x)) == y.index(max(y)) for x, y in zip(p, q, strict=True)]
    found = metrics(tokens)
    assert found["tokens"] == count
    assert found["kld"]["mean"] == pytest.approx(sum(kld) / count, rel=1e-9)
    assert found["kld"]["max"] == pytest.approx(max(kld), rel=1e-9)
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)):
        place = share * (count - 1)  # linear between the two neighbours
        low, high = sorted(kld)[int(place)], sorted(kld)[min(int(place) + 1, count - 1)]
        assert found["kld"][name] == pytest.approx(low + (high - low) * (place % 1), rel=1e-9)
    surprise = [sum(-math.log(x) for x in xs) / count for xs in (ours, theirs)]
    assert found["perplexity"]["package"] == pytest.approx(math.exp(surprise[0]))
    assert found["perplexity"]["reference"] == pytest.approx(math.exp(surprise[1]))
    assert found["perplexity"]["ratio"] == pytest.approx(math.exp(surprise[0] - surprise[1]))
    assert found["top1"]["mean"] == pytest.approx(sum(agree) / count)
    change = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert found["delta_p"]["rms"] == pytest.approx(math.sqrt(sum(c * c for c in change) / count))
    assert found["delta_p"]["p50"] == pytest.approx(float(np.median(change)))
    assert found["delta_p"]["p1"] < found["delta_p"]["p5"] < 0 < found["delta_p"]["p95"]


def test_the_same_logits_are_no_distance(data: dict[str, np.ndarray]) -> None:
    rows = data["reference"], data["reference"], data["true"]
    same = compare_rows(*rows, 0, np.arange(len(rows[0])), data["routes"])
    found = metrics(same)
    assert found["kld"]["max"] == 0
    assert found["top1"]["mean"] == found["perplexity"]["ratio"] == 1
    assert found["delta_p"]["rms"] == 0


def test_logits_of_any_size_stay_finite(data: dict[str, np.ndarray]) -> None:
    rows = data["reference"] * 1000, data["package"] * 1000, data["true"]
    found = compare_rows(*rows, 0, np.arange(len(rows[0])), data["routes"])
    assert np.isfinite(found.kld).all()


def test_most_likely_tokens_come_first(data: dict[str, np.ndarray], tokens: Tokens) -> None:
    ranked = np.argsort(-data["reference"], axis=-1)[:, :3]
    assert (tokens.reference_top == ranked).all()
    assert np.exp(tokens.reference_top_log[0, 0]) == pytest.approx(
        max(softmax(data["reference"][0]))
    )


def test_intervals_draw_passages_and_not_tokens() -> None:
    rng = np.random.default_rng(0)
    level = rng.standard_normal(100)  # tokens of a passage are alike: 100 values, not 5,000
    groups = np.repeat(np.arange(100), 50)
    found = interval(groups, level[groups])
    low, high = found["ci"]
    expected = 2 * 1.96 * level.std() / 10
    assert found["mean"] == pytest.approx(level.mean())
    assert low < found["mean"] < high
    assert high - low == pytest.approx(expected, rel=0.15)
    assert interval(groups, level[groups]) == found  # the seed is fixed


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 5)
    hits = 0
    for _ in range(60):
        values = (rng.standard_normal(40) + 3)[groups] + rng.standard_normal(200)
        low, high = interval(groups, values)["ci"]
        hits += low < 3 < high
    assert 50 <= hits < 60  # of 57 expected


def test_router_agreement_is_a_share_of_each_layer(
    data: dict[str, np.ndarray], tokens: Tokens
) -> None:
    rows = router_agreement(tokens)
    assert [row["layer"] for row in rows] == [0, 1]
    assert [row["mean"] for row in rows] == pytest.approx(data["routes"].mean(0).tolist())


def test_every_token_is_in_the_histogram() -> None:
    found = histogram(np.array([0.0, 1e-30, 0.01, 3.0, 1e6]))
    assert sum(found["counts"]) == 5
    assert len(found["edges"]) == len(found["counts"]) + 1
