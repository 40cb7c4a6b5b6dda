"""Generation: equal to a loop without a cache, stopped, cancelled and accounted for."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from gptoss_onnx.runtimes.batch import Batch
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Options, Usage, generate
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.scheduler import generate_batch
from gptoss_onnx.runtimes.session import Session
from tests.conftest import seal
from tests.runtimes.conftest import CONTEXT, TinyModel

Prompt = Callable[..., list[int]]
NEVER: frozenset[int] = frozenset()


def options(count: int = 30, **others: Any) -> Options:
    return Options(**{"max_new_tokens": count, "stop_ids": NEVER, **others})


@pytest.mark.parametrize("chunk", [5, 64, 512])
def test_greedy_equals_no_cache(
    package: Package, model: TinyModel, prompt: Prompt, chunk: int
) -> None:
    ids = prompt(140)
    generation = generate(Session(package), ids, options(40, chunk=chunk))
    assert generation.finish_reason is None
    reply = list(generation)
    assert len(reply) == 40
    assert reply == model.choices(ids, reply)
    assert generation.finish_reason == "length"


def test_the_prompt_is_fed_in_chunks(package: Package, prompt: Prompt) -> None:
    session, sizes = Session(package), []
    feed = session.feed

    def counted(tokens: Sequence[int], *others: Any) -> Any:
        sizes.append(len(tokens))
        return feed(tokens, *others)

    session.feed = counted  # type: ignore[method-assign]
    list(generate(session, prompt(25), options(3, chunk=10)))
    assert sizes == [10, 10, 5, 1, 1]


def test_a_stop_token_ends_it_and_is_given(
    package: Package, model: TinyModel, prompt: Prompt
) -> None:
    ids = prompt(12)
    wanted = model.greedy(ids, 20)
    stop = wanted[10]
    end = wanted.index(stop) + 1
    generation = generate(Session(package), ids, options(stop_ids=frozenset({stop})))
    assert list(generation) == wanted[:end]
    assert generation.finish_reason == "stop"
    last = generate(Session(package), ids, options(end, stop_ids=frozenset({stop})))
    assert list(last) == wanted[:end]
    assert last.finish_reason == "stop"  # though it is also the last one allowed


def test_the_packages_defaults_are_used(
    package_folder: Path, tmp_path: Path, model: TinyModel, prompt: Prompt
) -> None:
    """Greedy, and stopping at the end token that its generation_config.json names."""
    ids = prompt(12)
    wanted = model.greedy(ids, 15)
    folder = Path(shutil.copytree(package_folder, tmp_path / "copy"))
    config = {"eos_token_id": wanted[8], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(config))
    seal(folder)
    generation = generate(Session(Package.open(folder)), ids, Options(max_new_tokens=15))
    assert list(generation) == wanted[: wanted.index(wanted[8]) + 1]
    assert generation.finish_reason == "stop"


def test_a_seed_repeats_a_reply(package: Package, prompt: Prompt) -> None:
    def reply(seed: int) -> list[int]:
        sampling = Sampling(temperature=2.0, seed=seed)
        return list(generate(Session(package), prompt(9), options(sampling=sampling)))

    assert reply(1) == reply(1) != reply(2)


def test_repetition_penalty_counts_the_prompt(package: Package, prompt: Prompt) -> None:
    sampling = Sampling(temperature=0, repetition_penalty=1e6)
    ids = prompt(9)
    tokens = list(generate(Session(package), ids, options(20, sampling=sampling)))
    assert not set(tokens) & set(ids)
    assert len(set(tokens)) == 20


def test_a_batch_equals_each_alone(package: Package, model: TinyModel, prompt: Prompt) -> None:
    prompts = [prompt(n, seed) for seed, n in enumerate((90, 33, 1, 64, 7))]
    counts = (5, 40, 60, 1, 30)
    results = generate_batch(package, prompts, [options(n, chunk=32) for n in counts])
    for ids, count, result in zip(prompts, counts, results, strict=True):
        assert result.ids == model.greedy(ids, count)
        assert result.finish_reason == "length"
        assert (result.usage.prompt_tokens, result.usage.new_tokens) == (len(ids), count)


def test_a_batch_without_padding_is_one_after_the_other(package: Package, prompt: Prompt) -> None:
    even = Package(package.folder, replace(package.manifest, padded_batches=False))
    prompts = [prompt(n, seed) for seed, n in enumerate((40, 3, 17))]
    several = [options(n) for n in (5, 9, 1)]
    alone = [list(generate(Session(package), p, o)) for p, o in zip(prompts, several, strict=True)]
    assert [result.ids for result in generate_batch(even, prompts, several)] == alone


def test_finished_rows_cost_nothing(
    package: Package, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[list[int]] = []
    feed = Batch.feed

    def spy(batch: Batch, rows: Sequence[Sequence[int]], **others: Any) -> Any:
        fed.append([len(row) for row in rows])
        return feed(batch, rows, **others)

    monkeypatch.setattr(Batch, "feed", spy)
    generate_batch(package, [prompt(9), prompt(4)], [options(2), options(4)])
    assert fed == [[9], [4], [1, 1], [1], [1]]


def test_a_sampled_batch_equals_each_alone(package: Package, prompt: Prompt) -> None:
    prompts = [prompt(n, seed) for seed, n in enumerate((40, 3, 17))]
    chosen = [options(25, sampling=Sampling(seed=seed, top_p=0.9)) for seed in range(3)]
    alone = [list(generate(Session(package), p, o)) for p, o in zip(prompts, chosen, strict=True)]
    assert [result.ids for result in generate_batch(package, prompts, chosen)] == alone


def test_batch_arguments(package: Package, model: TinyModel) -> None:
    assert generate_batch(package, []) == []
    results = generate_batch(package, [[1], [1]], options(4))
    assert [result.ids for result in results] == [model.greedy([1], 4)] * 2
    with pytest.raises(UserError, match="2 options for 1 prompts"):
        generate_batch(package, [[1]], [options(), options()])


def test_the_context_is_a_limit(package: Package) -> None:
    session = Session(package, max_length=20)
    generation = generate(session, [5] * 15, Options(stop_ids=NEVER))
    assert len(list(generation)) == 5
    assert generation.finish_reason == "length"
    assert len(list(generate(session, [5] * 15, options(50)))) == 5
    with pytest.raises(UserError, match=r"has 20 tokens, the context holds 20 .* by 1 tokens"):
        generate(session, [5] * 20)
    with pytest.raises(UserError, match=f"has {CONTEXT + 3} tokens, the context holds {CONTEXT}"):
        generate(Session(package), [5] * (CONTEXT + 3))
    with pytest.raises(UserError, match="empty"):
        generate(session, [])
    with pytest.raises(UserError, match="empty"):
        generate_batch(package, [[1], []])


def test_options_are_checked() -> None:
    for name in ("max_new_tokens", "chunk"):
        with pytest.raises(UserError, match=f"{name} is 0"):
            Options(**{name: 0})


def test_usage_and_reuse(package: Package, model: TinyModel, prompt: Prompt) -> None:
    session, ids = Session(package), prompt(50)
    first = generate(session, ids, options(10))
    reply = [next(first)]
    first_token_seconds = first.usage.first_token_seconds
    reply += first
    usage = first.usage
    assert usage.first_token_seconds == first_token_seconds
    assert (usage.prompt_tokens, usage.reused_tokens, usage.new_tokens) == (50, 0, 10)
    assert usage.first_token_seconds is not None
    assert 0 < usage.prefill_seconds <= usage.first_token_seconds
    assert usage.decode_tokens_per_second == 9 / usage.decode_seconds
    assert usage.prefill_tokens_per_second == 50 / usage.prefill_seconds
    # The last token was given, and never fed.
    follow_up = [*ids, *reply, 3, 4]
    second = generate(session, follow_up, options(10))
    assert list(second) == model.greedy(follow_up, 10)
    assert second.usage.reused_tokens == 59
    # Another reply to the same prompt: from the snapshot, or its last token again without one.
    third = generate(session, [*ids, 9], options(10))
    assert list(third) == model.greedy([*ids, 9], 10)
    assert third.usage.reused_tokens == 50


def test_no_rates_without_times() -> None:
    assert Usage().decode_tokens_per_second is None
    assert Usage().prefill_tokens_per_second is None


def test_cancel_between_steps(package: Package, model: TinyModel, prompt: Prompt) -> None:
    session, ids, cancel = Session(package), prompt(20), threading.Event()
    generation = generate(session, ids, options(50), cancel)
    tokens = []
    for token in generation:
        tokens.append(token)
        if len(tokens) == 7:
            cancel.set()
    assert generation.finish_reason == "cancelled"
    assert tokens == model.greedy(ids, 7)
    assert list(generate(session, ids, options(9))) == model.greedy(ids, 9)


def test_cancel_between_chunks(package: Package, model: TinyModel, prompt: Prompt) -> None:
    session, ids, cancel = Session(package), prompt(100), threading.Event()
    feed = session.feed

    def cancelling(*arguments: Any) -> Any:
        logits = feed(*arguments)
        if session.length == 30:
            cancel.set()
        return logits

    session.feed = cancelling  # type: ignore[method-assign]
    generation = generate(session, ids, options(5, chunk=10), cancel)
    assert list(generation) == []
    assert (generation.finish_reason, session.length) == ("cancelled", 30)
    cancel.clear()
    assert list(generate(session, ids, options(5), cancel)) == model.greedy(ids, 5)


def test_cancel_ends_a_run_that_is_under_way(package: Package, prompt: Prompt) -> None:
    """The graph is replaced by one that runs until its RunOptions are told to terminate."""

    class Endless:
        io_binding = package.graph.io_binding

        def run_with_iobinding(self, _: Any, run_options: onnxruntime.RunOptions) -> None:
            until = time.monotonic() + 10
            while not run_options.terminate:
                assert time.monotonic() < until, "never terminated"
                time.sleep(0.001)
            raise RuntimeError("terminated")

    session, cancel = Session(package), threading.Event()
    session.batch._graph = Endless()
    threading.Timer(0.1, cancel.set).start()
    generation = generate(session, prompt(30), options(), cancel)
    assert list(generation) == []
    assert generation.finish_reason == "cancelled"


def test_a_run_that_fails_is_no_cancellation(package: Package, prompt: Prompt) -> None:
    class Broken:
        io_binding = package.graph.io_binding

        def run_with_iobinding(self, *_: Any) -> None:
            raise RuntimeError("broken")

    session = Session(package)
    session.batch._graph = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        list(generate(session, prompt(3), options(), threading.Event()))


def test_a_cancelled_batch(package: Package, model: TinyModel) -> None:
    cancel = threading.Event()
    cancel.set()
    results = generate_batch(package, [[1], [2, 3]], options(), cancel)
    assert [(r.ids, r.finish_reason) for r in results] == [([], "cancelled")] * 2


def test_an_abandoned_reply_frees_the_session(
    package: Package, model: TinyModel, prompt: Prompt
) -> None:
    session, ids = Session(package), prompt(10)
    first = generate(session, ids, options())
    next(first)
    with pytest.raises(RuntimeError, match="generating already"):
        next(generate(session, ids, options()))
    first.close()
    assert first.finish_reason == "cancelled"
    assert list(generate(session, ids, options(3))) == model.greedy(ids, 3)


@pytest.mark.parametrize("wrong", [-3, 272, 10**9, 1.5, True, "a"])
def test_ids_outside_the_vocabulary_are_refused(package: Package, wrong: Any) -> None:
    session = Session(package)
    for given in (
        lambda: generate(session, [1, wrong]),
        lambda: generate_batch(package, [[1, wrong]]),
    ):
        with pytest.raises(UserError, match=rf"have {wrong!r} at position 1: .* 272 tokens"):
            given()
    with pytest.raises(UserError, match=rf"stop_ids have {wrong!r} at position 0"):
        generate(session, [1], Options(stop_ids=frozenset([wrong])))
    assert session.length == 0
