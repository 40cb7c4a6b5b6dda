"""Generating one reply: chunked prefill, decode, stopping, cancelling, and what it all took."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.sampling import Sampler, Sampling
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.token_ids import check_ids

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
# How often a long run looks whether it was cancelled, in seconds.
_POLL = 0.05


@dataclass(frozen=True)
class Options:
    """`max_new_tokens` None is as many as fit; `sampling` and `stop_ids` None are the package's.

    `chunk` is how many prompt tokens a run takes: more are faster, and take more memory for
    activations; fewer show progress and stop sooner.
    """

    max_new_tokens: int | None = None
    sampling: Sampling | None = None
    stop_ids: frozenset[int] | None = None
    chunk: int = 512

    def __post_init__(self) -> None:
        for name, value in (("max_new_tokens", self.max_new_tokens), ("chunk", self.chunk)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")


@dataclass(frozen=True)
class Usage:
    """What a generation took. Times are wall-clock seconds."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, that were in the KV cache already
    new_tokens: int = 0  # a stop token included
    prefill_seconds: float = 0.0
    first_token_seconds: float | None = None  # from the start
    decode_seconds: float = 0.0  # from the first token to the last

    @property
    def decode_tokens_per_second(self) -> float | None:
        if self.new_tokens < 2 or not self.decode_seconds:
            return None
        return (self.new_tokens - 1) / self.decode_seconds

    @property
    def prefill_tokens_per_second(self) -> float | None:
        fed = self.prompt_tokens - self.reused_tokens
        return fed / self.prefill_seconds if self.prefill_seconds else None


@dataclass(frozen=True)
class Result:
    """One prompt's reply: `ids` end with the stop token if one came."""

    ids: list[int]
    finish_reason: FinishReason
    usage: Usage


class Draft:
    """One reply on its way: what is sampled, when it ends, what it took."""

    def __init__(self, package: Package, prompt: Sequence[int], options: Options, max_length: int):
        """UserError for a prompt that is empty or does not fit into `max_length` tokens."""
        vocabulary = package.manifest.vocab_size
        check_ids(prompt, vocabulary, "the prompt's tokens")
        check_ids(options.stop_ids or (), vocabulary, "stop_ids")
        room = _room(max_length, len(prompt))
        self.prompt = prompt
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.usage = Usage(prompt_tokens=len(prompt))
        self._limit = min(options.max_new_tokens or room, room)
        self._stop_ids = package.stop_ids if options.stop_ids is None else options.stop_ids
        self._sampler = Sampler(options.sampling or package.sampling, prompt)
        self._started = time.perf_counter()

    def begin(self, reused: int) -> None:
        """Work starts, with `reused` tokens of the prompt in the KV cache already."""
        self._started = time.perf_counter()
        self.usage = replace(self.usage, reused_tokens=reused)

    def prefilled(self) -> None:
        """The whole prompt is in the KV cache."""
        self.usage = replace(self.usage, prefill_seconds=time.perf_counter() - self._started)

    def take(self, logits: NDArray[np.float32]) -> int:
        """The token that logits [V] lead to."""
        token = self._sampler.next(logits)
        self.tokens.append(token)
        if token in self._stop_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._limit:
            self.finish_reason = "length"
        elapsed, first = time.perf_counter() - self._started, self.usage.first_token_seconds
        self.usage = replace(
            self.usage,
            new_tokens=len(self.tokens),
            first_token_seconds=elapsed if first is None else first,
            decode_seconds=0.0 if first is None else elapsed - first,
        )
        return token


class Generation(Iterator[int]):
    """A reply being written: iterate over its token ids, a stop token included.

    `finish_reason` is None until the last token came; `usage` grows on the way.
    """

    def __init__(self, draft: Draft, steps: Generator[int]) -> None:
        self._draft = draft
        self._steps = steps

    def __next__(self) -> int:
        return next(self._steps)

    def close(self) -> None:
        """Stop here; without effect on a reply that is complete."""
        self._steps.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._draft.finish_reason

    @property
    def usage(self) -> Usage:
        return self._draft.usage


def generate(
    session: Session,
    prompt: Sequence[int],
    options: Options | None = None,
    cancel: threading.Event | None = None,
) -> Generation:
    """Write one reply to `prompt` (ids), reusing what `session` holds of it already.

    Work starts with the first token asked for. Setting `cancel` from any thread ends it soon, in
    the middle of a long prefill too. UserError for a prompt that is empty or does not fit;
    RuntimeError, from the first token on, while another generation uses the session.
    """
    options = options or Options()
    draft = Draft(session.package, prompt, options, session.max_length)
    return Generation(draft, _steps(session, draft, options.chunk, cancel))


def _room(max_length: int, prompt: int) -> int:
    """Tokens that fit behind the prompt; UserError when none does."""
    if not prompt:
        raise UserError("the prompt is empty: it needs at least one token")
    if prompt >= max_length:
        raise UserError(
            f"the prompt has {prompt} tokens, the context holds {max_length} with at least one "
            f"for the reply: shorten the prompt by {prompt - max_length + 1} tokens or more"
        )
    return max_length - prompt


def _steps(
    session: Session, draft: Draft, chunk: int, cancel: threading.Event | None
) -> Generator[int]:
    """Yields each token when it is chosen."""
    if not session.lock.acquire(blocking=False):
        raise RuntimeError("this session is generating already: finish that or cancel it first")
    try:
        draft.begin(session.reuse(draft.prompt))
        logits = _prefill(session, draft.prompt, chunk, cancel)
        draft.prefilled()
        while logits is not None and not (cancel and cancel.is_set()):
            yield draft.take(logits)
            if draft.finish_reason or (cancel and cancel.is_set()):
                break
            logits = session.feed(draft.tokens[-1:])
    finally:
        draft.finish_reason = draft.finish_reason or "cancelled"
        session.lock.release()


def _prefill(
    session: Session, prompt: Sequence[int], chunk: int, cancel: threading.Event | None
) -> NDArray[np.float32] | None:
    """Feed what the session lacks of the prompt; the logits [V] after it, None if cancelled."""
    logits = None
    with _terminated_by(cancel) as run_options:
        for start in range(session.length, len(prompt), chunk):
            if cancel and cancel.is_set():
                return None
            try:
                logits = session.feed(prompt[start : start + chunk], run_options)
            except RuntimeError:
                if cancel and cancel.is_set():
                    return None
                raise
    session.snapshot()  # the next turn drops this reply's analysis and comes back to here
    return logits


@contextlib.contextmanager
def _terminated_by(cancel: threading.Event | None) -> Iterator[onnxruntime.RunOptions | None]:
    """Run options whose run ends when `cancel` is set: a chunk of a large model takes seconds."""
    run_options = onnxruntime.RunOptions() if cancel is not None else None

    def terminate() -> None:
        assert run_options is not None
        run_options.terminate = True

    with when_set(cancel, terminate):
        yield run_options


@contextlib.contextmanager
def when_set(event: threading.Event | None, act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` soon after `event` is set, on a thread of its own."""
    if event is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if event.wait(_POLL):
                act()
                return

    threading.Thread(target=watch, name="cancel-watch", daemon=True).start()
    try:
        yield
    finally:
        done.set()
