"""Every way of feeding tokens gives the logits of one pass without a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from gptoss_onnx.runtimes import kv_cache
from gptoss_onnx.runtimes.batch import FIRST_CAPACITY, Batch
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.row import SNAPSHOTS
from gptoss_onnx.runtimes.session import Session
from tests.runtimes.conftest import CONTEXT, VOCAB, WINDOW, TinyModel

Prompt = Callable[..., list[int]]

# float32 through three layers: rounding reaches 1e-4 where a softmax is near a tie, and logits have
# a standard deviation of 3. Leaving out the window, the sinks or one key moves some by more than 1.
TOLERANCE = 1e-3


@pytest.fixture(params=["windowed", "full"])
def any_package(
    request: pytest.FixtureRequest, package: Package, full_kv_package: Package
) -> Package:
    return package if request.param == "windowed" else full_kv_package


def feed(session: Session, ids: list[int], chunk: int = 1) -> np.ndarray:
    """Logits after each chunk, [chunks, V]."""
    starts = range(0, len(ids), chunk)
    return np.stack([session.feed(ids[start : start + chunk]).copy() for start in starts])


def buffers(session: Session) -> list[int]:
    return [buffer.array.ctypes.data for buffer in session.batch._buffers]


@pytest.mark.parametrize("chunk", [1, 3, 7, 64, 300])
def test_chunks_equal_the_whole(
    any_package: Package, model: TinyModel, prompt: Prompt, chunk: int
) -> None:
    ids = prompt(300)
    wanted = model.logits(ids)[[*range(chunk - 1, 299, chunk), 299]]
    assert (
        np.abs(feed(Session(any_package), ids, chunk) - wanted[: -(-300 // chunk)]).max()
        < TOLERANCE
    )


@pytest.mark.parametrize("omit", ["window", "sinks", "a key"])
def test_the_tolerance_can_fail(
    package: Package, model: TinyModel, prompt: Prompt, omit: str
) -> None:
    """The canary: each part of attention that a cache could lose is visible in the logits."""
    weights, windows = dict(model.weights), model.windows
    ids = wrong_ids = prompt(300)
    if omit == "window":
        windows = (WINDOW + 1, None, WINDOW + 1)
    elif omit == "sinks":
        weights |= {f"sinks.{i}": weights[f"sinks.{i}"] * 0 for i in range(3)}
    else:
        wrong_ids = [ids[0] ^ 1, *ids[1:]]
    wrong = TinyModel(weights, windows).logits(wrong_ids)
    difference = np.abs(feed(Session(package), ids) - wrong).max(axis=-1)
    assert difference[-50:].max() > 20 * TOLERANCE


def test_a_batch_equals_each_alone(any_package: Package, model: TinyModel, prompt: Prompt) -> None:
    """Right padded chunks, rows that end early, rows that idle while others decode."""
    rows = [prompt(n, seed) for seed, n in enumerate((200, 71, 5, 64, 1))]
    wanted = [model.logits(row) for row in rows]
    fed = (150, 60, 4, 1, 1)  # as prompts; the rest one by one
    batch = Batch(any_package, len(rows))
    seen = [0] * len(rows)
    steps = [
        [row[start : min(start + 32, n)] for row, n in zip(rows, fed, strict=True)]
        for start in range(0, 150, 32)
    ]
    steps += [[row[n + i : n + i + 1] for row, n in zip(rows, fed, strict=True)] for i in range(63)]
    for step in steps:
        logits = batch.feed(step)
        for row, tokens in enumerate(step):
            if tokens:
                seen[row] += len(tokens)
                assert np.abs(logits[row] - wanted[row][seen[row] - 1]).max() < TOLERANCE
    assert seen[1:] == [71, 5, 64, 1]


def test_growing_equals_a_fixed_buffer(
    any_package: Package, model: TinyModel, prompt: Prompt
) -> None:
    ids = prompt(2 * FIRST_CAPACITY + 40)
    growing, fixed = Session(any_package), Session(any_package, max_length=len(ids))
    capacities, addresses = set(), buffers(fixed)
    for start in range(0, len(ids), 2):
        chunk = ids[start : start + 2]
        assert np.abs(growing.feed(chunk) - fixed.feed(chunk)).max() < TOLERANCE
        capacities.add(growing.batch._buffers[2].capacity)
    assert capacities == {FIRST_CAPACITY, 2 * FIRST_CAPACITY, 4 * FIRST_CAPACITY}
    assert buffers(fixed) == addresses
    assert np.abs(growing.feed([1]) - model.logits([*ids, 1])[-1]).max() < TOLERANCE


def test_a_batch_grows(package: Package, model: TinyModel, prompt: Prompt) -> None:
    rows = [prompt(FIRST_CAPACITY + 50), prompt(20, seed=2)]
    batch = Batch(package, 2)
    batch.feed([row[:200] for row in rows])
    logits = batch.feed([rows[0][200:], [9]])
    assert np.abs(logits[0] - model.logits(rows[0])[-1]).max() < TOLERANCE
    assert np.abs(logits[1] - model.logits([*rows[1], 9])[-1]).max() < TOLERANCE


def test_decode_steps_reallocate_nothing(any_package: Package, prompt: Prompt) -> None:
    session = Session(any_package, max_length=200)
    before = session.batch._logits
    session.feed(prompt(20))
    first = session.feed([1])
    bound = session.batch._bound[0, 1]
    # Arrays are compared, and held: the address of a freed one may come back.
    assert any_package.manifest.logits == "all" or session.batch._logits is before
    held = [session.batch._logits, bound.ids, *(buffer.array for buffer in session.batch._buffers)]
    for token in prompt(100):
        assert session.feed([token]).base is first.base
        now = [
            session.batch._logits,
            bound.ids,
            *(buffer.array for buffer in session.batch._buffers),
        ]
        assert all(a is b for a, b in zip(now, held, strict=True))
    # ... and the graph wrote into those very buffers, through past and present alike.
    outputs = bound.binding.get_outputs()
    assert {value.data_ptr() for value in outputs} == {first.ctypes.data, *buffers(session)}


@pytest.mark.parametrize("rows", [1, 3])
def test_the_mask_stays_where_it_is(package: Package, prompt: Prompt, rows: int) -> None:
    batch, addresses = Batch(package, rows), set()
    for token in prompt(50):
        batch.feed([[token]] * rows)
        addresses.add(batch._bound[0, rows].binding._bound_inputs["attention_mask"].data_ptr())
    assert len(addresses) == 1


def test_windowed_buffers_stay_small(
    package: Package, full_kv_package: Package, prompt: Prompt
) -> None:
    session, full = Session(package), Session(full_kv_package)
    for each in (session, full):
        each.feed(prompt(500))
    assert [b.capacity for b in session.batch._buffers] == [10, 10, 512, 512, 10, 10]
    assert {b.capacity for b in full.batch._buffers} == {512}


@pytest.mark.parametrize("start", range(WINDOW, 40))
def test_rewinding_within_the_buffer(
    package: Package, model: TinyModel, prompt: Prompt, start: int
) -> None:
    """Where the operator's formula allows it, nothing else is needed; elsewhere 0 is reached."""
    ids, other = prompt(40), prompt(30, seed=3)
    session = Session(package)
    feed(session, ids, 40)
    reached = session.rewind(start)
    # Capacity 10, window 8: three rows leave at a time, so after 40 tokens row 0 is position 30.
    assert reached == (start if start >= 38 else 0)
    branch = [*ids[:reached], *other]
    assert session.length == reached
    assert list(session.tokens) == ids[:reached]
    wanted = model.logits(branch)[reached:]
    assert np.abs(feed(session, other) - wanted).max() < TOLERANCE


@pytest.mark.parametrize("start", [100, 150, 199, 200])
def test_rewinding_full_buffers_needs_no_snapshot(
    full_kv_package: Package, model: TinyModel, prompt: Prompt, start: int
) -> None:
    ids, other = prompt(200), prompt(30, seed=3)
    session = Session(full_kv_package)
    feed(session, ids, 64)
    assert session.rewind(start) == start
    wanted = model.logits([*ids[:start], *other])[start:]
    assert np.abs(feed(session, other) - wanted).max() < TOLERANCE


@pytest.mark.parametrize(
    ("target", "reached"),
    [(150, 150), (199, 150), (149, 149), (148, 60), (120, 60), (60, 60), (59, 59), (30, 0)],
)
def test_rewinding_to_a_snapshot(
    package: Package, model: TinyModel, prompt: Prompt, target: int, reached: int
) -> None:
    ids, other = prompt(300), prompt(40, seed=4)
    session = Session(package)
    for start, end in ((0, 60), (60, 150), (150, 300)):
        session.feed(ids[start:end])
        if end < 300:
            session.snapshot()
    assert session.rewind(target) == reached
    wanted = model.logits([*ids[:reached], *other])[reached:]
    assert np.abs(feed(session, other) - wanted).max() < TOLERANCE


def test_snapshots_of_a_past_that_was_left_are_dropped(
    package: Package, model: TinyModel, prompt: Prompt
) -> None:
    ids, other = prompt(200), prompt(200, seed=5)
    session = Session(package)
    for start in (0, 50, 100, 150):
        session.feed(ids[start : start + 50])
        session.snapshot()
    session.rewind(50)
    session.feed(other)
    assert session.rewind(150) == 50
    assert np.abs(feed(session, [3]) - model.logits([*ids[:50], 3])[-1]).max() < TOLERANCE


def test_few_snapshots_are_kept_and_those_that_spare_most(package: Package, prompt: Prompt) -> None:
    session = Session(package)
    lengths = [100, 110, 200, 300, 305, 310, 315]
    for start, end in zip([0, *lengths], lengths, strict=False):
        session.feed(prompt(end - start))
        session.snapshot()
    kept = [snapshot.start for snapshot in session._snapshots]
    assert kept == [100, 200, 300, 315]
    assert len(kept) == SNAPSHOTS


def test_reuse(package: Package, model: TinyModel, prompt: Prompt) -> None:
    ids = prompt(120)
    session = Session(package)
    assert session.reuse(ids) == 0
    session.feed(ids[:100])
    session.snapshot()
    session.feed(ids[100:])
    assert session.reuse([*ids, 1, 2]) == 120
    assert session.reuse(ids) == 119  # one token is left to feed
    assert session.reuse([*ids[:110], 7, 7, 7]) == 100  # the snapshot below the common prefix
    assert np.abs(feed(session, [7]) - model.logits([*ids[:100], 7])[-1]).max() < TOLERANCE
    assert session.reuse(prompt(50, seed=9)) == 0
    assert np.abs(feed(session, [5]) - model.logits([5])[-1]).max() < TOLERANCE


def test_a_failed_run_leaves_an_intact_prefix(
    package: Package, model: TinyModel, prompt: Prompt
) -> None:
    ids = prompt(200)
    session = Session(package)
    session.feed(ids[:100])
    session.snapshot()
    session.feed(ids[100:150])
    stop = onnxruntime.RunOptions()
    stop.terminate = True
    with pytest.raises(RuntimeError):
        session.feed(ids[150:], stop)
    # The run may have moved the windows, so only the snapshot is sure.
    assert session.length == 100
    assert list(session.tokens) == ids[:100]
    assert np.abs(session.feed(ids[100:]) - model.logits(ids)[-1]).max() < TOLERANCE


def test_a_failed_run_that_evicts_nothing_loses_nothing(
    package: Package, model: TinyModel, prompt: Prompt
) -> None:
    session, ids = Session(package), prompt(7)
    session.feed(ids)
    stop = onnxruntime.RunOptions()
    stop.terminate = True
    with pytest.raises(RuntimeError):
        session.feed([1], stop)
    assert session.length == 7
    assert np.abs(session.feed([2]) - model.logits([*ids, 2])[-1]).max() < TOLERANCE


def test_reset(package: Package, model: TinyModel, prompt: Prompt) -> None:
    session = Session(package)
    session.feed(prompt(90))
    session.snapshot()
    session.reset()
    assert (session.length, list(session.tokens)) == (0, [])
    assert np.abs(feed(session, [5, 6]) - model.logits([5, 6])).max() < TOLERANCE


def test_a_batch_starts_again(package: Package, model: TinyModel, prompt: Prompt) -> None:
    batch = Batch(package, 2)
    batch.feed([prompt(30), prompt(30)])
    for row in batch.rows:
        row.clear()
    rows = [prompt(30), prompt(4, seed=2)]
    batch.feed(rows)
    logits = batch.feed([[1], [1]])
    for row, ids in enumerate(rows):
        assert np.abs(logits[row] - model.logits([*ids, 1])[-1]).max() < TOLERANCE


def test_limits(package: Package, prompt: Prompt) -> None:
    session = Session(package, max_length=20)
    session.feed(prompt(20))
    with pytest.raises(UserError, match="21 tokens are more than the 20"):
        session.feed([1])
    assert session.length == 20
    for wrong in (1, CONTEXT + 1):
        with pytest.raises(UserError, match=f"max_length is {wrong}"):
            Session(package, max_length=wrong)
    with pytest.raises(ValueError, match="cannot rewind to 21"):
        session.rewind(21)


def test_rows_of_different_lengths_need_padded_batches(package: Package, prompt: Prompt) -> None:
    even = Package(package.folder, dataclasses.replace(package.manifest, padded_batches=False))
    assert Session(even).feed(prompt(8)).shape == (VOCAB,)
    with pytest.raises(UserError, match=r"same number of tokens for every row.* session for each"):
        Batch(even, 2)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize(
    "error", [MemoryError("std::bad_alloc"), RuntimeException("CUDA failure 2: out of memory")]
)
def test_a_cache_that_cannot_grow_leaves_the_session_as_it_was(
    any_package: Package,
    prompt: Prompt,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    at: int,
) -> None:
    """At the first buffer or between two; the session goes on once there is room again."""
    ids = prompt(FIRST_CAPACITY + 40)
    session, calls = Session(any_package), 0
    feed(session, ids[:FIRST_CAPACITY], 64)
    original = kv_cache._grown

    def grown(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at % 2 + 1:
            raise error
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(kv_cache, "_grown", grown)
        with pytest.raises(UserError, match=r"KV cache of 1 x 296 tokens does not fit") as raised:
            session.feed(ids[FIRST_CAPACITY:])
        assert "\n" not in str(raised.value) and calls
        assert (session.length, list(session.tokens)) == (FIRST_CAPACITY, ids[:FIRST_CAPACITY])
    wanted = feed(Session(any_package), ids, len(ids))
    if at == 2:  # rewound first, with what grew
        session.rewind(FIRST_CAPACITY - 1)
        session.feed(ids[FIRST_CAPACITY - 1 : FIRST_CAPACITY])
    assert np.abs(session.feed(ids[FIRST_CAPACITY:]) - wanted[-1]).max() < TOLERANCE
