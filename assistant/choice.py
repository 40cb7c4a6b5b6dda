"""One of a turn's replies on its way: tokens to pieces that say what they are, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from gptoss_onnx.assistant.call_ids import new_call_id
from gptoss_onnx.assistant.stop_texts import StopTexts, first_stop
from gptoss_onnx.assistant.token_texts import TokenTexts
from gptoss_onnx.runtimes.content_filter import ContentFilter
from gptoss_onnx.runtimes.harmony import FUNCTIONS, Message, called_name
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import Reply
from gptoss_onnx.runtimes.stream_parser import Event

if TYPE_CHECKING:
    from gptoss_onnx.assistant.turn import Turn
    from gptoss_onnx.runtimes.request import Listener, Running, Token

Part = Literal["reasoning", "content", "call"]
Reason = Literal["stop", "length", "tool_calls", "content_filter", "cancelled", "deadline"]


@dataclass(frozen=True)
class Call:
    """A tool call: `name` as the client declared it, `index` among the reply's calls from 0."""

    id: str
    name: str
    index: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a choice's message, and where it belongs.

    `begins`: the message's first. `call`: whose arguments `text` is part of. `tokens`: those that
    the text came with, of content and where log probabilities were asked for.
    """

    choice: int
    part: Part
    text: str
    event: Event
    begins: bool
    call: Call | None = None
    tokens: Sequence[Token] = ()


@dataclass(frozen=True)
class TurnUsage:
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion's

    def __add__(self, other: TurnUsage) -> TurnUsage:
        return TurnUsage(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Finished:
    """How a choice ended. `messages` are for the history; `error` why it was cancelled."""

    choice: int
    reason: Reason
    usage: TurnUsage
    messages: Sequence[Message]
    error: Exception | None = None
    verdicts: tuple[str, ...] = ()


class AnyChoice(Protocol):
    """What an `Answer` is made of."""

    finished: Finished | None
    slow: bool  # whether taking may take so long that a thread should do it

    @property
    def usage(self) -> TurnUsage:
        """Of the tokens that were taken so far, an end mark included."""

    def take(self) -> list[Piece | Finished]:
        """What is new, the reply's end included."""

    def cancel(self) -> None:
        """At once, from any thread."""


class Blocked:
    """The choice of a prompt that a filter's `rule` forbids: it ends before it begins."""

    slow = False

    def __init__(self, place: int, rule: str, prompt_tokens: int, _: Listener) -> None:
        """`prompt_tokens`: 0 where another choice counts the prompt. It has no news to tell."""
        self.finished: Finished | None = None
        self.usage = TurnUsage(prompt_tokens)
        verdicts = (f"prompt: {rule}",)
        self._end = Finished(place, "content_filter", self.usage, (), verdicts=verdicts)

    def take(self) -> list[Piece | Finished]:
        self.finished = self._end
        return [self._end]

    def cancel(self) -> None:
        pass


class Choice:
    """Take from it whenever its engine says that something is new.

    What a filter reviews is what would be told: nothing behind a stop text or in a call too many.
    """

    def __init__(
        self,
        place: int,
        running: Running,
        package: Package,
        turn: Turn,
        content_filter: ContentFilter | None = None,
    ) -> None:
        self.running = running
        self.finished: Finished | None = None
        self.slow = content_filter is not None and content_filter.slow
        self._place = place
        self._tokenizer = package.tokenizer
        self._turn = turn
        stop_ids = turn.options.stop_ids or package.stop_ids
        self._reply = Reply(package.tokenizer, turn.tool_names, stop_ids, content_filter, self._cut)
        self._stops = StopTexts(turn.stop)
        self._read: int | None = None  # the message that is being read
        self._told: int | None = None  # and told
        self._call: Call | None = None
        self._calls = 0
        self._answer: int | None = None  # the first final message
        self._since: list[Token] = []  # tokens behind the last that completed text
        self._texts = TokenTexts()
        self._taken = 0  # tokens
        self._reasoning = 0  # of them
        self._ended = False  # by us: a stop text, a call too many

    @property
    def usage(self) -> TurnUsage:
        return usage_of(self.running, self._taken, self._reasoning, shared=self._place > 0)

    def take(self) -> list[Piece | Finished]:
        """What is new, the reply's end included."""
        if self.finished is not None:
            return []
        pieces: list[Piece | Finished] = []
        done = self.running.done  # before the tokens are taken: none comes after it
        for token in self.running.take():
            self._taken += 1
            self._since.append(token)
            pieces += map(self._tell, self._reply.feed(token.id))
            if self._ended or self._reply.blocked is not None:
                self.cancel()
                done = True
                break
        if done:
            pieces += self._finish()
        return pieces

    def cancel(self) -> None:
        self.running.cancel()

    def _cut(self, events: list[Event], ended: bool) -> list[Event]:
        """What of `events` is part of the answer."""
        kept = []
        for event in events:
            if not self._ended:
                kept += self._keep(event)
        if ended and not self._ended and self._read is not None and (text := self._stops.finish()):
            kept.append(Event("final", text, self._read))
        return kept

    def _keep(self, event: Event) -> list[Event]:
        kind, begins = event.kind, event.message != self._read
        tokens, self._since = self._since, []
        self._read = event.message
        if kind == "analysis":
            self._reasoning += len(tokens)
        if kind == "call" and begins:
            if self._calls and not self._turn.parallel_tool_calls:
                self._ended = True
                return []
            self._begin_call(event, tokens)
        if kind == "final":
            if self._answer is None:
                self._answer = event.message
            elif self._turn.response_format is not None and event.message != self._answer:
                return []  # two objects are no JSON
        self._texts.add(event.text, self._spoken(tokens))
        if kind != "final" or not self._turn.stop:
            return [event]
        text = self._stops.feed(event.text)
        self._ended = self._stops.hit
        return [replace(event, text=text)] if text else []

    def _spoken(self, tokens: list[Token]) -> list[Token]:
        """Of those that ended in a text, the text's own: none of the header before it."""
        if self._turn.top_logprobs is None:
            return []
        behind = len(tokens)
        while behind and self._tokenizer.token_bytes(tokens[behind - 1].id):
            behind -= 1
        return tokens[behind:]

    def _begin_call(self, event: Event, tokens: list[Token]) -> None:
        recipient = str(event.recipient)
        before = self._tokenizer.show(t.id for t in tokens).partition("<|channel|>")[0]
        call_id = new_call_id(recipient, event.channel, event.content_type, "to=" in before)
        known = called_name(recipient, self._turn.tool_names)
        self._call = Call(call_id, known or recipient.removeprefix(FUNCTIONS), self._calls)
        self._calls += 1

    def _tell(self, event: Event) -> Piece:
        kind, begins = event.kind, event.message != self._told
        self._told = event.message
        tokens = self._texts.take(len(event.text))
        if kind == "call":
            return Piece(self._place, "call", event.text, event, begins, self._call)
        # Commentary is for the user to read (a call's preamble), but no part of a JSON answer.
        shown = kind == "final" or (kind == "commentary" and self._turn.response_format is None)
        part: Part = "content" if shown else "reasoning"
        return Piece(self._place, part, event.text, event, begins, None, tokens)

    def _finish(self) -> list[Piece | Finished]:
        ended = "stop" if self._ended else self.running.finish_reason or "cancelled"
        rest = self._reply.finish("cancelled" if ended == "deadline" else ended)
        pieces: list[Piece | Finished] = [*map(self._tell, rest)]
        reason: Reason = ended
        verdicts: tuple[str, ...] = ()
        if self._reply.blocked is not None:
            reason, verdicts = "content_filter", (f"answer: {self._reply.blocked}",)
        elif self._calls and reason == "stop":
            reason = "tool_calls"
        self.finished = Finished(
            self._place,
            reason,
            self.usage,
            self._messages(),
            self.running.error,
            verdicts,
        )
        return [*pieces, self.finished]

    def _messages(self) -> list[Message]:
        """The history's, cut where a stop text or a call too many ended the reply."""
        messages: list[Message] = []
        calls = 0
        for message in self._reply.messages:
            calls += message.is_call
            if calls > 1 and not self._turn.parallel_tool_calls:
                break
            place = first_stop(message.content, self._turn.stop)
            if place is not None and message.channel == "final" and not message.is_call:
                return [*messages, replace(message, content=message.content[:place])]
            messages.append(message)
        return messages


def usage_of(running: Running, taken: int, reasoning: int, *, shared: bool) -> TurnUsage:
    """Of the `taken` tokens of its reply; the engine may be ahead of them, by a few or none.

    `shared`: another choice counts the prompt.
    """
    used = running.usage
    prompt = (0, 0) if shared else (used.prompt_tokens, used.reused_tokens)
    return TurnUsage(*prompt, taken, reasoning)
