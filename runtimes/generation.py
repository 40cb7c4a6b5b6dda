"""Generating tokens: chunked prefill, decode, stopping, cancelling, and what it all took."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator, Sequence
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

FinishReason = Literal["stop", "length", "cancelled"]
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


class _Row:
    """One sequence on its way: what is sampled, when it ends, what it took."""

    def __init__(self, package: Package, prompt: Sequence[int], options: Options, room: int):
        vocabulary = package.manifest.vocab_size
        check_ids(prompt, vocabulary, "the prompt's tokens")
        check_ids(options.stop_ids or (), vocabulary, "stop_ids")
        self.prompt = prompt
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.usage = Usage(prompt_tokens=len(prompt))
        self._limit = min(options.max_new_tokens or room, room)
        self._stop_ids = package.stop_ids if options.stop_ids is None else options.stop_ids
        self._sampler = Sampler(options.sampling or package.sampling, prompt)

    def take(self, logits: NDArray[np.float32], started: float) -> None:
        token = self._sampler.next(logits)
        self.tokens.append(token)
        if token in self._stop_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._limit:
            self.finish_reason = "length"
        elapsed, first = time.perf_counter() - started, self.usage.first_token_seconds
        self.usage = replace(
            self.usage,
            new_tokens=len(self.tokens),
            first_token_seconds=elapsed if first is None else first,
            decode_seconds=0.0 if first is None else elapsed - first,
        )


class Generation(Iterator[int]):
    """A reply being written: iterate over its token ids, a stop token included.

    `finish_reason` is None until the last token came; `usage` grows on the way.
    """

    def __init__(self, row: _Row, steps: Generator[list[int]]) -> None:
        self._row = row
        self._steps = steps

    def __next__(self) -> int:
        return next(self._steps)[0]

    def close(self) -> None:
        """Stop here; without effect on a reply that is complete."""
        self._steps.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._row.finish_reason

    @property
    def usage(self) -> Usage:
        return self._row.usage


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
    room = _room(session.max_length, [prompt])
    row = _Row(session.package, prompt, options, room)
    return Generation(row, _steps(session, [row], options.chunk, cancel))


def generate_batch(
    package: Package,
    prompts: Sequence[Sequence[int]],
    options: Options | Sequence[Options] | None = None,
    cancel: threading.Event | None = None,
) -> list[Result]:
    """Reply to several prompts at once, each as it would be alone; `options` may be one for each.

    Prompts are prefilled and decoded together, finished ones idle; where the package has no padded
    batches, one after the other. The room for replies is what the longest prompt leaves, and the
    first options' `chunk` holds for all.
    """
    if not prompts:
        return []
    each = [options] * len(prompts) if isinstance(options, Options) else list(options or ())
    each = each or [Options()] * len(prompts)
    if len(each) != len(prompts):
        raise UserError(f"{len(each)} options for {len(prompts)} prompts: one for each, or one")
    room = _room(package.manifest.context_length, prompts)
    rows = [_Row(package, *pair, room) for pair in zip(prompts, each, strict=True)]
    for batch in [rows] if package.manifest.padded_batches else [[row] for row in rows]:
        session = Session(package, batch=len(batch))
        for _ in _steps(session, batch, each[0].chunk, cancel):
            pass
    return [Result(row.tokens, row.finish_reason or "cancelled", row.usage) for row in rows]


def _room(max_length: int, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that fit behind the longest prompt; UserError when none does."""
    if not all(map(len, prompts)):
        raise UserError("the prompt is empty: it needs at least one token")
    longest = max(map(len, prompts))
    if longest >= max_length:
        raise UserError(
            f"the prompt has {longest} tokens, the context holds {max_length} with at least one "
            f"for the reply: shorten the prompt by {longest - max_length + 1} tokens or more"
        )
    return max_length - longest


def _steps(
    session: Session, rows: Sequence[_Row], chunk: int, cancel: threading.Event | None
) -> Generator[list[int]]:
    """Yields the last token of each row, after each step."""
    if not session.lock.acquire(blocking=False):
        raise RuntimeError("this session is generating already: finish that or cancel it first")
    started = time.perf_counter()
    try:
        if session.batch == 1:
            reused = session.reuse(rows[0].prompt)
            rows[0].usage = replace(rows[0].usage, reused_tokens=reused)
        logits = _prefill(session, [row.prompt for row in rows], chunk, cancel)
        elapsed = time.perf_counter() - started
        for row in rows:
            row.usage = replace(row.usage, prefill_seconds=elapsed)
        while logits is not None and not (cancel and cancel.is_set()):
            for row, scores in zip(rows, logits, strict=True):
                if not row.finish_reason:
                    row.take(scores, started)
            yield [row.tokens[-1] for row in rows]
            if all(row.finish_reason for row in rows) or (cancel and cancel.is_set()):
                break
            logits = session.feed([[] if row.finish_reason else row.tokens[-1:] for row in rows])
    finally:
        session.lock.release()
        for row in rows:
            # Cancelled, or the caller stopped listening.
            row.finish_reason = row.finish_reason or "cancelled"


def _prefill(
    session: Session,
    prompts: Sequence[Sequence[int]],
    chunk: int,
    cancel: threading.Event | None,
) -> NDArray[np.float32] | None:
    """Feed what the session lacks of the prompts; logits [B, V] after each, None if cancelled."""
    longest = max(map(len, prompts))
    last = np.empty((len(prompts), session.package.manifest.vocab_size), np.float32)
    with _terminated_by(cancel) as run_options:
        for start in range(session.length, longest, chunk):
            if cancel and cancel.is_set():
                return None
            try:
                logits = session.feed([ids[start : start + chunk] for ids in prompts], run_options)
            except RuntimeError:
                if cancel and cancel.is_set():
                    return None
                raise
            for row, ids in enumerate(prompts):
                # A shorter prompt ends in an earlier chunk, the only one that gives its logits.
                if start < len(ids) <= start + chunk:
                    last[row] = logits[row]
    if session.batch == 1:
        session.snapshot()  # the next turn drops this reply's analysis and comes back to here
    return last


@contextlib.contextmanager
def _terminated_by(cancel: threading.Event | None) -> Iterator[onnxruntime.RunOptions | None]:
    """Run options whose run ends when `cancel` is set: a chunk of a large model takes seconds."""
    if cancel is None:
        yield None
        return
    run_options, done = onnxruntime.RunOptions(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            if cancel.wait(_POLL):
                run_options.terminate = True
                return

    threading.Thread(target=watch, name="cancel-watch", daemon=True).start()
    try:
        yield run_options
    finally:
        done.set()
