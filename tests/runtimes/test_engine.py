"""The scheduler on its thread: asked from many, told of news, cancelled in a run, closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gptoss_onnx.runtimes.engine import Engine
from gptoss_onnx.runtimes.generation import Options, generate
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.request import Request, Running
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.scheduler import Scheduler
from gptoss_onnx.runtimes.session import Session

Prompt = Callable[..., list[int]]
PATIENCE = 120.0  # seconds until a test gives up


def asked(prompt: list[int], count: int = 8) -> Request:
    return Request(prompt, Options(count, Sampling(temperature=0), stop_ids=frozenset()))


@pytest.fixture
def engine(package: Package) -> Iterator[Engine]:
    engine = Engine(package, rows=4)
    yield engine
    engine.close()


def test_many_threads_ask_at_once(engine: Engine, package: Package, prompt: Prompt) -> None:
    requests = [asked(prompt(10 + n, seed=n), 12) for n in range(20)]
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = [token.id for token in engine.submit(requests[number])]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for number, request in enumerate(requests):
        assert found[number] == list(generate(Session(package), request.prompt, request.options))


def test_a_listener_hears_of_every_token_and_of_the_end(engine: Engine, prompt: Prompt) -> None:
    heard = threading.Event()
    seen: list[int] = []
    running: list[Running] = []

    def listen(over: bool) -> None:
        if running:
            seen.extend(token.id for token in running[0].take())
            if over:
                heard.set()

    running.append(engine.submit(asked(prompt(9), 6), listen))
    assert heard.wait(PATIENCE)
    seen += [token.id for token in running[0].take()]
    assert len(seen) == 6
    assert list(running[0]) == [], "an end is told to whoever asks later too"


def test_an_engine_sleeps_when_nobody_asks(
    package: Package, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    step = Scheduler.step

    def counted(scheduler: Scheduler) -> bool:
        nonlocal steps
        steps += 1
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", counted)
    engine = Engine(package, rows=2)
    assert len(list(engine.submit(asked(prompt(5), 3)))) == 3
    before = steps
    time.sleep(0.2)
    assert steps <= before + 1
    assert len(list(engine.submit(asked(prompt(5), 3)))) == 3, "and wakes"
    engine.close()


def test_cancel_ends_a_prefill_that_is_under_way(
    package: Package, prompt: Prompt, engine: Engine
) -> None:
    """The graph is replaced by one that runs until its RunOptions are told to terminate."""
    running_now, ended = threading.Event(), threading.Event()
    batch = engine._scheduler._batch
    graph = batch._graph

    class Endless:
        io_binding = graph.io_binding

        def run_with_iobinding(self, _: Any, run_options: Any) -> None:
            until = time.monotonic() + PATIENCE
            running_now.set()
            while not run_options.terminate:
                assert time.monotonic() < until, "never terminated"
                time.sleep(0.001)
            ended.set()
            raise RuntimeError("terminated")

    batch._graph = Endless()  # type: ignore[assignment]
    running = engine.submit(asked(prompt(30)))
    assert running_now.wait(PATIENCE)
    batch._graph = graph
    running.cancel()
    assert list(running) == []
    assert ended.is_set()
    assert (running.finish_reason, running.error) == ("cancelled", None)
    assert len(list(engine.submit(asked(prompt(30))))) == 8


def test_an_unforeseen_failure_ends_what_runs_and_the_next_are_answered(
    engine: Engine, package: Package, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "_decode", broken)
        running = engine.submit(asked(prompt(9)))
        assert len(list(running)) == 1
        assert str(running.error) == "broken"
    request = asked(prompt(9))
    wanted = list(generate(Session(package), request.prompt, request.options))
    assert [token.id for token in engine.submit(request)] == wanted


def test_closing_cancels_whatever_is_asked_for(package: Package, prompt: Prompt) -> None:
    engine = Engine(package, rows=1)
    every = [engine.submit(asked(prompt(9, seed=n), 1500)) for n in range(3)]
    engine.close()
    assert [running.finish_reason for running in every] == ["cancelled"] * 3
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(asked(prompt(9)))
    engine.close()


def test_what_it_tells_of_itself(engine: Engine, package: Package, prompt: Prompt) -> None:
    assert (engine.active, engine.waiting, engine.one_at_a_time) == (0, 0, None)
    assert engine.max_length == package.manifest.context_length
    every = [engine.submit(asked(prompt(9, seed=n), 500)) for n in range(6)]
    deadline = time.monotonic() + PATIENCE
    while (engine.active, engine.waiting) != (4, 2):
        assert time.monotonic() < deadline
    for running in every:
        running.cancel()
        list(running)
    assert (engine.active, engine.waiting) == (0, 0)
