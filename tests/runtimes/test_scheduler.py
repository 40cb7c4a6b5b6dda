"""Replies that are written at once are those that each would be alone, whoever comes and goes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gptoss_onnx.runtimes.batch import Batch
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Options, generate
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.prefix_cache import PrefixCache
from gptoss_onnx.runtimes.request import Request, Running
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.scheduler import SHARED_CHUNK, QueueFull, Scheduler
from gptoss_onnx.runtimes.session import Session
from tests.runtimes.conftest import CONTEXT, TinyModel

Prompt = Callable[..., list[int]]
GREEDY = Sampling(temperature=0)


def asked(prompt: Sequence[int], count: int = 8, **others: Any) -> Request:
    chunk = others.pop("chunk", 512)
    sampling = others.pop("sampling", GREEDY)
    options = Options(count, sampling, stop_ids=others.pop("stop_ids", frozenset()), chunk=chunk)
    return Request(prompt, options, **others)


def alone(package: Package, request: Request) -> list[int]:
    return list(generate(Session(package), request.prompt, request.options))


def run(scheduler: Scheduler) -> None:
    while scheduler.step():
        pass


def ids(running: Running) -> list[int]:
    return [token.id for token in running.take()]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many tokens each row got, run after run."""
    sizes: list[list[int]] = []
    feed = Batch.feed

    def spy(batch: Batch, rows: Sequence[Sequence[int]], **others: Any) -> Any:
        sizes.append([len(row) for row in rows])
        return feed(batch, rows, **others)

    monkeypatch.setattr(Batch, "feed", spy)
    return sizes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cached", [False, True])
def test_rows_join_and_leave_as_they_like(
    package: Package, prompt: Prompt, seed: int, cached: bool
) -> None:
    """Prompts of every length, some that share a beginning; some are cancelled half-way."""
    dice = random.Random(seed)
    cache = PrefixCache(200_000) if cached else None
    scheduler = Scheduler(package, rows=4, cache=cache)
    begun: list[tuple[Running, bool]] = []
    for number in range(25):
        shared = prompt(dice.choice([0, 5, 9, 40]), seed=1)
        own = prompt(dice.choice([1, 3, 30, 90, 300]), seed=number + 10)
        marks = (len(shared),) if shared else ()
        sampling = dice.choice([GREEDY, Sampling(seed=number, top_p=0.9)])
        count = dice.choice([1, 4, 20, 50])
        chunk = dice.choice([7, 64, 512])
        request = asked([*shared, *own], count, marks=marks, chunk=chunk, sampling=sampling)
        begun.append((scheduler.submit(request), dice.random() < 0.2))
        for _ in range(dice.randrange(8)):
            scheduler.step()
            for running, leaves in begun:
                if leaves and len(running.draft.tokens) > 1:
                    running.cancel()
    run(scheduler)
    assert (scheduler.active, scheduler.waiting) == (0, 0)
    for running, leaves in begun:
        wanted = alone(package, running.request)
        found = ids(running)
        assert running.error is None
        if leaves:
            assert found == wanted[: len(found)]
        else:
            assert (found, running.finish_reason) == (wanted, "length")
        assert running.usage.new_tokens == len(found)


def test_logits_are_those_of_a_lone_row(package: Package, model: TinyModel, prompt: Prompt) -> None:
    """Fed by ranges, by chunks of different rows in turn, and one token all together."""
    lines = [prompt(n, seed) for seed, n in enumerate((120, 33, 61))]
    batch = Batch(package, 3)
    for start in range(0, 120, 25):
        for place, line in enumerate(lines):
            if chunk := line[:-1][start : start + 25]:
                batch.feed([chunk], first=place)
    logits = batch.feed([line[-1:] for line in lines])
    for place, line in enumerate(lines):
        assert np.abs(logits[place] - model.logits(line)[-1]).max() < 1e-3
    logits = batch.feed([[5], [6]], first=1).copy()
    assert np.abs(logits[1] - model.logits([*lines[2], 6])[-1]).max() < 1e-3
    batch.rows[0].take(batch.rows[2])
    logits = batch.feed([[7], [7]])
    assert np.abs(logits[0] - model.logits([*lines[2], 6, 7])[-1]).max() < 1e-3
    assert (batch.rows[2].length, batch.rows[0].length) == (0, 63)


def test_a_saved_row_goes_on_in_another(package: Package, model: TinyModel, prompt: Prompt) -> None:
    line, batch = prompt(90), Batch(package, 3)
    batch.feed([line[:40]], first=1)
    first = batch.rows[1].saved(0)
    batch.feed([line[40:]], first=1)
    second = batch.rows[1].saved(40)
    assert (first.end, second.start, second.end) == (40, 40, 90)
    batch.rows[2].load([first, second], 90)
    logits = batch.feed([[3]], first=2)
    assert np.abs(logits[0] - model.logits([*line, 3])[-1]).max() < 1e-3
    batch.rows[0].load([first], 40)
    logits = batch.feed([[4]])
    assert np.abs(logits[0] - model.logits([*line[:40], 4])[-1]).max() < 1e-3


def test_all_decode_in_one_run_and_a_place_is_taken_at_once(
    package: Package, prompt: Prompt, fed: list[list[int]]
) -> None:
    scheduler = Scheduler(package, rows=2)
    for seed, count in enumerate((2, 5, 2)):
        scheduler.submit(asked(prompt(6, seed=seed), count))
    run(scheduler)
    # Two prompts, a step that ends the first; the third's prompt, and both to their ends.
    assert fed == [[6], [6], [1, 1], [6], [1, 1], [1], [1]]


def test_a_long_prompt_delays_nobody_by_more_than_a_chunk(
    package: Package, prompt: Prompt, fed: list[list[int]]
) -> None:
    scheduler = Scheduler(package, rows=4)
    decoding = scheduler.submit(asked(prompt(5), 30))
    for _ in range(3):
        scheduler.step()
    scheduler.submit(asked(prompt(1500, seed=2), 3))
    fed.clear()
    run(scheduler)
    assert len(ids(decoding)) == 30
    prompts, between = 0, 0
    for sizes in fed:
        if len(sizes) == 1 and sizes[0] > 1:
            prompts += sizes[0]
            between += sizes[0]
            assert between <= SHARED_CHUNK, "and then a step of those who decode"
        else:
            between = 0
    assert prompts == 1500


def test_nobody_decodes_so_chunks_are_whole(
    package: Package, prompt: Prompt, fed: list[list[int]]
) -> None:
    scheduler = Scheduler(package, rows=4)
    scheduler.submit(asked(prompt(1100), 1))
    run(scheduler)
    assert fed == [[512], [512], [76]]


def test_a_short_prompt_does_not_wait_for_a_long_one(package: Package, prompt: Prompt) -> None:
    scheduler = Scheduler(package, rows=4)
    long = scheduler.submit(asked(prompt(1500), 2))
    short = scheduler.submit(asked(prompt(4, seed=3), 2))
    while not short.done:
        scheduler.step()
    assert not long.take()
    run(scheduler)
    assert len(ids(long)) == 2


def test_a_follow_up_starts_from_what_the_turn_before_left(
    package: Package, prompt: Prompt, fed: list[list[int]]
) -> None:
    cache = PrefixCache(10_000_000)
    scheduler = Scheduler(package, rows=2, cache=cache)
    first = prompt(200)
    running = scheduler.submit(asked(first, 20))
    run(scheduler)
    reply = ids(running)
    for number in range(3):  # others take the rows
        scheduler.submit(asked(prompt(50, seed=number + 5), 3))
    run(scheduler)
    fed.clear()
    more = prompt(9, seed=77)
    both = scheduler.submit(asked([*first, *reply, *more], 4))
    dropped = scheduler.submit(asked([*first, *more], 4))  # the reply's reasoning is not kept
    run(scheduler)
    assert fed[0] == [10], "the reply's last token, which nobody fed, and what is new"
    assert fed[1] == [9]
    assert (both.usage.reused_tokens, dropped.usage.reused_tokens) == (219, 200)
    for running in (both, dropped):
        assert ids(running) == alone(package, running.request)


def test_marks_are_shared_by_those_who_begin_alike(package: Package, prompt: Prompt) -> None:
    scheduler = Scheduler(package, rows=4, cache=PrefixCache(10_000_000))
    system = prompt(70)
    for number in range(3):
        own = asked([*system, *prompt(30, seed=number + 5)], 3, marks=(70,))
        running = scheduler.submit(own)
        run(scheduler)
        assert running.usage.reused_tokens == (70 if number else 0)
        assert ids(running) == alone(package, own)


def test_packages_and_adapters_share_nothing(package: Package, prompt: Prompt) -> None:
    scheduler = Scheduler(package, rows=1, cache=PrefixCache(10_000_000))
    line = prompt(60)
    reused = []
    for adapter in ("", "one", ""):
        running = scheduler.submit(asked(line, 2, adapter=adapter))
        run(scheduler)
        reused.append(running.usage.reused_tokens)
    assert reused == [0, 0, 59]


def test_cancel_frees_the_row_between_two_tokens(package: Package, prompt: Prompt) -> None:
    scheduler = Scheduler(package, rows=1)
    running = scheduler.submit(asked(prompt(5), 1000))
    waits = scheduler.submit(asked(prompt(5), 2))
    never = scheduler.submit(asked(prompt(5), 2))
    for _ in range(3):
        scheduler.step()
    running.cancel()
    never.cancel()
    scheduler.step()
    assert (running.finish_reason, len(ids(running))) == ("cancelled", 4)
    assert (never.finish_reason, ids(never)) == ("cancelled", [])
    run(scheduler)
    assert ids(waits) == alone(package, waits.request)


def test_a_deadline_ends_a_reply_and_a_request_that_waits(package: Package, prompt: Prompt) -> None:
    scheduler = Scheduler(package, rows=1)
    late = scheduler.submit(asked(prompt(5), 1000, deadline=time.monotonic() + 0.05))
    waits = scheduler.submit(asked(prompt(5), 5, deadline=time.monotonic() + 0.05))
    fine = scheduler.submit(asked(prompt(5), 5, deadline=time.monotonic() + 1000))
    run(scheduler)
    assert (late.finish_reason, waits.finish_reason) == ("deadline", "deadline")
    assert (fine.finish_reason, len(ids(fine))) == ("length", 5)
    assert 0 < len(ids(late)) < 1000


def test_the_queue_is_bounded(package: Package, prompt: Prompt) -> None:
    scheduler = Scheduler(package, rows=2, queue=1)
    for _ in range(3):
        scheduler.submit(asked(prompt(5), 50))
    with pytest.raises(QueueFull, match="3 requests wait already"):
        scheduler.submit(asked(prompt(5), 50))
    scheduler.step()
    assert (scheduler.active, scheduler.waiting) == (2, 1)
    with pytest.raises(QueueFull, match="1 requests wait already"):
        scheduler.submit(asked(prompt(5), 50))


def test_what_cannot_be_is_refused_at_once(package: Package, prompt: Prompt) -> None:
    scheduler = Scheduler(package, rows=2, max_length=50)
    with pytest.raises(UserError, match="the context holds 50"):
        scheduler.submit(asked(prompt(50)))
    with pytest.raises(UserError, match="empty"):
        scheduler.submit(asked([]))
    with pytest.raises(UserError, match="vocabulary"):
        scheduler.submit(asked([1, 10**6]))
    running = scheduler.submit(Request(prompt(45), Options(stop_ids=frozenset())))
    run(scheduler)
    assert (len(ids(running)), running.finish_reason) == (5, "length")
    assert Scheduler(package).max_length == CONTEXT


def test_packages_whose_sequences_share_no_runs_answer_in_turn(
    package: Package, prompt: Prompt, fed: list[list[int]]
) -> None:
    manifest = package.manifest
    even = Package(package.folder, replace(manifest, padded_batches=False))
    scheduler = Scheduler(even, rows=8)
    assert "same number of tokens for every row" in str(scheduler.one_at_a_time)
    both = [scheduler.submit(asked(prompt(9, seed=n), 3)) for n in range(2)]
    run(scheduler)
    assert fed == [[9], [1], [1]] * 2
    assert [ids(r) for r in both] == [alone(package, r.request) for r in both]
    anew = replace(manifest, kv=replace(manifest.kv, in_place=False))
    assert "makes its KV cache anew" in str(Scheduler(Package(package.folder, anew)).one_at_a_time)
    assert Scheduler(package).one_at_a_time is None


def test_a_run_that_fails_loses_no_token(
    package: Package, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefill ends its own request; the others go on."""
    scheduler = Scheduler(package, rows=3)
    fine = scheduler.submit(asked(prompt(20), 30))
    for _ in range(4):
        scheduler.step()
    feed = Batch.feed

    def broken(batch: Batch, rows: Sequence[Sequence[int]], **others: Any) -> Any:
        if max(map(len, rows)) > 1:
            raise RuntimeError("broken")
        return feed(batch, rows, **others)

    monkeypatch.setattr(Batch, "feed", broken)
    lost = scheduler.submit(asked(prompt(30, seed=4), 5))
    run(scheduler)
    assert (str(lost.error), lost.finish_reason, ids(lost)) == ("broken", "cancelled", [])
    monkeypatch.undo()
    assert ids(fine) == alone(package, fine.request)


def test_rows_that_a_failed_step_set_back_are_fed_again(package: Package, prompt: Prompt) -> None:
    scheduler = Scheduler(package, rows=2)
    both = [scheduler.submit(asked(prompt(30, seed=n), 40)) for n in range(2)]
    for _ in range(5):
        scheduler.step()
    scheduler._batch.rows[1].rewind(0)
    run(scheduler)
    assert [ids(r) for r in both] == [alone(package, r.request) for r in both]


def test_no_memory_ends_the_longest_and_says_so(
    package: Package, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(package, rows=2)
    long = scheduler.submit(asked(prompt(240), 100))
    short = scheduler.submit(asked(prompt(10), 100))

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Batch, "_grow", full)
    run(scheduler)
    assert "does not fit into memory" in str(long.error)
    assert ids(long) == alone(package, asked(prompt(240), 17))
    monkeypatch.undo()
    assert ids(short) == alone(package, short.request)


def test_log_probabilities_are_the_models_own(
    package: Package, model: TinyModel, prompt: Prompt
) -> None:
    """Sampled tokens too, whatever temperature or constraint chose them."""
    line = prompt(30)

    class Odd:
        def allowed(self) -> Any:
            return np.arange(model.weights["embedding"].shape[0]) % 2 == 1

        def accept(self, token: int) -> None:
            assert token % 2 == 1

    request = asked(line, 6, sampling=Sampling(temperature=3.0, seed=1), top_logprobs=3)
    plain = Scheduler(package, rows=1)
    for constraint in (None, Odd()):
        running = plain.submit(replace(request, constraint=constraint))
        run(plain)
        told = running.take()
        assert len(told) == 6
        before = list(line)
        for token in told:
            scores = model.logits(before)[-1].astype(np.float64)
            wanted = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
            assert token.logprob == pytest.approx(wanted[token.id], abs=1e-3)
            likeliest = np.argsort(-wanted)[:3]
            assert [i for i, _ in token.top] == list(likeliest)
            assert [value for _, value in token.top] == pytest.approx(
                list(wanted[likeliest]), abs=1e-3
            )
            before.append(token.id)
        assert constraint is None or all(token.id % 2 for token in told)
    running = plain.submit(asked(line, 1, top_logprobs=0))
    run(plain)
    (token,) = running.take()
    assert token.top == () and token.logprob is not None
    running = plain.submit(asked(line, 1))
    run(plain)
    assert running.take()[0].logprob is None


def test_a_constraint_that_breaks_ends_its_own_reply(package: Package, prompt: Prompt) -> None:
    class Broken:
        def allowed(self) -> Any:
            raise ValueError("no form")

        def accept(self, token: int) -> None: ...

    scheduler = Scheduler(package, rows=2)
    fine = scheduler.submit(asked(prompt(9), 5))
    broken = scheduler.submit(asked(prompt(9), 5, constraint=Broken()))
    run(scheduler)
    assert str(broken.error) == "no form"
    assert ids(fine) == alone(package, fine.request)


def test_long_conversations_give_their_memory_back(package: Package, prompt: Prompt) -> None:
    scheduler = Scheduler(package, rows=2)
    scheduler._batch.reserve(300)
    running = scheduler.submit(asked(prompt(20), 5))
    run(scheduler)
    scheduler.rest()
    assert scheduler._batch.capacity == 512  # no more than is kept
    scheduler._batch._capacity = 5000
    scheduler.rest()
    assert scheduler._batch.capacity == 256
    again = scheduler.submit(running.request)
    run(scheduler)
    assert ids(again) == ids(running)
