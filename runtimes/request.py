"""A prompt that waits for its reply among others, and how far it is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnxruntime

from gptoss_onnx.runtimes.generation import Draft, FinishReason, Options, Usage

if TYPE_CHECKING:
    from gptoss_onnx.runtimes.constraint import Constraint

Listener = Callable[[bool], None]  # hears that a request has news, and whether it is over

_DEFAULT_OPTIONS = Options()


@dataclass(frozen=True)
class Request:
    """A prompt to reply to.

    `marks`: lengths of the prompt that other requests may share, such as the end of the system and
    developer messages. `top_logprobs`: None for no log probabilities, 0 for the chosen token's
    alone. `deadline`: of `time.monotonic()`, when the reply is cut. `adapter` names the weights
    beside the package's own, so that nothing is shared between two.
    """

    prompt: Sequence[int]
    options: Options = _DEFAULT_OPTIONS
    marks: Sequence[int] = ()
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    deadline: float | None = None
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a reply; log probabilities are natural and of the model's own distribution."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # (id, logprob), likeliest first


class Running:
    """A request on its way. Every method may be called from any thread."""

    def __init__(self, request: Request, draft: Draft, listener: Listener | None) -> None:
        self.request = request
        self.error: Exception | None = None  # why it could not go on: it is cancelled then
        self.finish_reason: FinishReason | None = None
        self.cancelled = False
        self.draft = draft
        self.begun = False  # it has had a row
        self._new: deque[Token] = deque()
        self._news = threading.Event()
        self._listener = listener
        self._run: onnxruntime.RunOptions | None = None
        self._lock = threading.Lock()

    @property
    def usage(self) -> Usage:
        return self.draft.usage

    @property
    def done(self) -> bool:
        """No more tokens come; `take` may still have some."""
        return self.finish_reason is not None

    def take(self) -> list[Token]:
        """The tokens since the last take; never blocks."""
        found = []
        while self._new:
            found.append(self._new.popleft())
        return found

    def __iter__(self) -> Iterator[Token]:
        """Tokens as they come, until it is done."""
        while True:
            self._news.wait()
            self._news.clear()
            done = self.done
            yield from self.take()
            if done:
                self._news.set()
                return

    def cancel(self) -> None:
        """End it: between two tokens, or in the middle of its prefill."""
        with self._lock:
            self.cancelled = True
            if self._run is not None:
                self._run.terminate = True

    # What follows is the scheduler's.

    @property
    def length(self) -> int:
        """Tokens that its row is to hold before the next one is chosen."""
        return len(self.request.prompt) + len(self.draft.tokens)

    def tokens(self, start: int, end: int) -> list[int]:
        """Of the prompt and the reply so far, from `start` to `end`."""
        prompt = self.request.prompt
        reply = self.draft.tokens[max(start - len(prompt), 0) : max(end - len(prompt), 0)]
        return [*prompt[start:end], *reply]

    def run_options(self, begins: bool) -> onnxruntime.RunOptions | None:
        """Of a run that `cancel` ends; None when it is over, or was before it began."""
        with self._lock:
            self._run = onnxruntime.RunOptions() if begins and not self.cancelled else None
            return self._run

    def tell(self, token: Token) -> None:
        self._new.append(token)
        self._changed()

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        self.error = error
        self.finish_reason = self.draft.finish_reason = reason
        self._changed()

    def _changed(self) -> None:
        self._news.set()
        if self._listener is not None:
            self._listener(self.done)
