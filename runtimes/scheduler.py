"""Whose turn it is: requests wait, get a row, are prefilled in chunks and decode together.

A round is prompts' tokens, at most a chunk of them, and one step of decoding for all rows: nobody
who decodes waits for more than a chunk. Prompts take turns.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.runtimes.batch import Batch, one_at_a_time
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Draft, FinishReason, Options, Result, when_set
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.prefix_cache import PrefixCache
from gptoss_onnx.runtimes.request import Listener, Request, Running, Token

# Prompt tokens of a round while others decode: they wait for these.
SHARED_CHUNK = 256
# An idle cache larger than this many tokens a row is given back.
_KEPT_CAPACITY = 4096
_MOST_ROWS = 32  # of `generate_batch`


class QueueFull(UserError):
    """As many requests wait as may."""


class Scheduler:
    """Requests for one package over `rows` rows; `step` does one round of work.

    `submit` may be called from any thread, everything else from one at a time. At most `queue`
    requests wait beside those that have a row. Of a package whose sequences cannot share runs,
    requests run one after the other: `one_at_a_time` says why. What prompts begin with is looked
    for in `cache`, which other schedulers may share.
    """

    def __init__(
        self,
        package: Package,
        *,
        rows: int = 16,
        queue: int | None = None,
        max_length: int | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        self.package = package
        self.one_at_a_time = one_at_a_time(package)
        self._batch = Batch(package, 1 if self.one_at_a_time else rows)
        self.max_length = min(max_length or self._batch.max_length, self._batch.max_length)
        self._cache = cache if package.manifest.kv.in_place else None
        self._folder = str(package.folder.resolve())
        self._queue = queue
        self._waiting: deque[Running] = deque()
        self._places: list[Running | None] = [None] * len(self._batch.rows)
        self._prompts: deque[Running] = deque()  # that are being prefilled, whose turn it is first
        self._lock = threading.Lock()

    @property
    def active(self) -> int:
        """Requests that have a row."""
        return sum(running is not None for running in self._places)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    def submit(self, request: Request, listener: Listener | None = None) -> Running:
        """Queue a request; `listener` is called whenever it has news, from where `step` runs.

        UserError for a prompt or options that cannot be, QueueFull where too many wait.
        """
        draft = Draft(self.package, request.prompt, request.options, self.max_length)
        running = Running(request, draft, listener)
        with self._lock:
            if self._queue is not None and self.waiting >= self._queue + self._places.count(None):
                raise QueueFull(f"{self.waiting} requests wait already: try again later")
            self._waiting.append(running)
        return running

    def step(self) -> bool:
        """One round; False when there was nothing to do."""
        self._drop()
        self._admit()
        self._close_ranks()
        if not self.active:
            return False
        if len(self._prompts) < self.active:
            budget = SHARED_CHUNK
        else:  # nobody decodes
            budget = max(running.request.options.chunk for running in self._prompts)
        while budget > 0 and self._prompts:
            budget -= self._prefill(self._prompts.popleft(), budget)
        self._decode()
        return True

    def cancel_all(self) -> None:
        """From any thread: the next `step` ends them."""
        for running in self._all():
            running.cancel()

    def end_all(self, error: Exception | None = None) -> None:
        """Cancel every request, because of `error`."""
        for running in self._all():
            running.finish("cancelled", error)
        with self._lock:
            self._waiting.clear()
        self._prompts.clear()
        self._places = [None] * len(self._places)
        for row in self._batch.rows:
            row.clear()

    def rest(self) -> None:
        """Nobody asks for anything: give back what a long conversation took."""
        if self._batch.capacity > _KEPT_CAPACITY and not self.active:
            self._batch.shrink()

    def _all(self) -> list[Running]:
        with self._lock:
            return [*filter(None, self._places), *self._waiting]

    def _drop(self) -> None:
        """End those that were cancelled or are late."""
        now = time.monotonic()
        for running in self._all():
            late = running.request.deadline is not None and now >= running.request.deadline
            if running.cancelled or late:
                self._end(running, "cancelled" if running.cancelled else "deadline")

    def _end(self, running: Running, reason: FinishReason, error: Exception | None = None) -> None:
        """Its place is free again; what its row holds stays for others."""
        with self._lock:
            if running in self._waiting:
                self._waiting.remove(running)
        if running in self._prompts:
            self._prompts.remove(running)
        if running in self._places:
            place = self._places.index(running)
            self._keep(running, place)
            self._places[place] = None
        running.finish(reason, error)

    def _admit(self) -> None:
        """Those who waited longest get the free rows."""
        for place, taken in enumerate(self._places):
            if taken is None:
                with self._lock:
                    if not self._waiting:
                        return
                    running = self._places[place] = self._waiting.popleft()
                self._prompts.append(running)

    def _close_ranks(self) -> None:
        """The rows in use are the first ones: runs go over neighbours, idle ones cost as much."""
        while None in self._places:
            hole = self._places.index(None)
            last = max((place for place, taken in enumerate(self._places) if taken), default=-1)
            if hole > last:
                return
            self._batch.rows[hole].take(self._batch.rows[last])
            self._places[hole], self._places[last] = self._places[last], None

    def _begin(self, running: Running, place: int) -> None:
        """Start from what the row itself holds of the prompt, or from the cache."""
        running.begun = True
        row, ids, key = self._batch.rows[place], list(running.request.prompt), self._key(running)
        reused = row.reuse(ids) if row.key == key else row.rewind(0)
        if self._cache is not None:
            segments, length = self._cache.find(key, ids[:-1], self._batch.same_rows)
            if length > reused:
                row.load(segments, length)
        row.key = key
        running.draft.begin(row.length)

    def _prefill(self, running: Running, budget: int) -> int:
        """Feed at most `budget` of its tokens, up to the next mark; how many they were."""
        place = self._places.index(running)
        row, marks = self._batch.rows[place], running.request.marks
        run_options = running.run_options(begins=True)
        if run_options is None:
            self._end(running, "cancelled")
            return 0
        try:
            if not running.begun:
                self._begin(running, place)
            end = min(row.length + min(budget, running.request.options.chunk), running.length)
            end = min((mark for mark in marks if row.length < mark < end), default=end)
            fed = running.tokens(row.length, end)
            logits = row.feed(fed, run_options)
        except Exception as error:
            self._end(running, "cancelled", None if running.cancelled else error)
            return 0
        finally:
            running.run_options(begins=False)
        if row.length < running.length:
            if row.length in marks:
                self._keep(running, place)
            self._prompts.append(running)
        else:
            if not running.draft.tokens:
                running.draft.prefilled()
                self._keep(running, place)
                row.snapshot()
            self._choose(running, logits)
        return len(fed)

    def _decode(self) -> None:
        """The next token of every row whose prompt is done."""
        ready: dict[int, Running] = {}
        for place, running in enumerate(self._places):
            if running is None or running in self._prompts:
                continue
            if self._batch.rows[place].length + 1 == running.length:
                ready[place] = running
            else:  # it lost tokens to a run that failed: they are fed as a prompt is
                self._prompts.append(running)
        if not ready:
            return
        rows = [ready[p].draft.tokens[-1:] if p in ready else [] for p in range(max(ready) + 1)]
        try:
            logits = self._batch.feed(rows)
        except UserError as error:  # no memory for longer rows: the longest gives way
            longest = max(ready, key=lambda place: self._batch.rows[place].length)
            self._end(ready[longest], "cancelled", error)
            return
        for place, running in ready.items():
            self._choose(running, logits[place])

    def _choose(self, running: Running, logits: NDArray[np.float32]) -> None:
        """The token that logits [V] lead to; what breaks here ends one reply alone."""
        constraint, scores = running.request.constraint, logits
        try:
            if constraint is not None and (allowed := constraint.allowed()) is not None:
                scores = np.where(allowed, logits, np.float32(-np.inf))
            token = running.draft.take(scores)
            if constraint is not None:
                constraint.accept(token)
            running.tell(_told(token, logits, running.request.top_logprobs))
        except Exception as error:
            self._end(running, "cancelled", error)
            return
        if running.draft.finish_reason is not None:
            self._end(running, running.draft.finish_reason)

    def _keep(self, running: Running, place: int) -> None:
        """What the row holds is there for later requests."""
        row = self._batch.rows[place]
        if self._cache is not None and running.begun and row.length:
            self._cache.add(self._key(running), row.tokens, row.saved)

    def _key(self, running: Running) -> tuple[str, str]:
        return self._folder, running.request.adapter


def _told(token: int, logits: NDArray[np.float32], top: int | None) -> Token:
    """`token` with log probabilities, of itself and of the `top` likeliest."""
    if top is None:
        return Token(token)
    most = logits.max()
    normalizer = float(most) + float(np.log(np.exp(logits - most).sum(dtype=np.float64)))
    likeliest = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.int64)
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    told = tuple((int(i), float(logits[i]) - normalizer) for i in likeliest)
    return Token(token, float(logits[token]) - normalizer, told)


def generate_batch(
    package: Package,
    prompts: Sequence[Sequence[int]],
    options: Options | Sequence[Options] | None = None,
    cancel: threading.Event | None = None,
) -> list[Result]:
    """Reply to several prompts at once, each as it would be alone; `options` may be one for each.

    UserError for a prompt that is empty or does not fit. Where the package's sequences cannot share
    runs, one after the other.
    """
    each = [options] * len(prompts) if isinstance(options, Options) else list(options or ())
    each = each or [Options()] * len(prompts)
    if len(each) != len(prompts):
        raise UserError(f"{len(each)} options for {len(prompts)} prompts: one for each, or one")
    if not prompts:
        return []
    scheduler = Scheduler(package, rows=min(len(prompts), _MOST_ROWS))
    every = [scheduler.submit(Request(*pair)) for pair in zip(prompts, each, strict=True)]

    with when_set(cancel, scheduler.cancel_all):
        while scheduler.step():
            pass
    for running in every:
        if running.error is not None:
            raise running.error
    return [Result(r.draft.tokens, r.finish_reason or "cancelled", r.usage) for r in every]
