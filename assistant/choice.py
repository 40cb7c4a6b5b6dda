"""One of a turn's replies on its way: tokens to pieces that say what they are, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from gptoss_onnx.assistant.call_ids import new_call_id
from gptoss_onnx.assistant.stop_texts import StopTexts, first_stop
from gptoss_onnx.runtimes.harmony import FUNCTIONS, Message, called_name
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import Reply
from gptoss_onnx.runtimes.stream_parser import Event

if TYPE_CHECKING:
    from gptoss_onnx.assistant.turn import Turn
    from gptoss_onnx.runtimes.request import Running, Token

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

    running: Running
    finished: Finished | None
    slow: bool  # whether taking may take so long that a thread should do it

    def take(self) -> list[Piece | Finished]:
        """What is new, the reply's end included."""


class Choice:
    """Take from it whenever its engine says that something is new."""

    def __init__(self, place: int, running: Running, package: Package, turn: Turn) -> None:
        self.running = running
        self.finished: Finished | None = None
        self.slow = False
        self._place = place
        self._tokenizer = package.tokenizer
        self._turn = turn
        stop_ids = turn.options.stop_ids or package.stop_ids
        self._reply = Reply(package.tokenizer, turn.tool_names, stop_ids)
        self._stops = StopTexts(turn.stop)
        self._message: int | None = None  # the one that is being told
        self._call: Call | None = None
        self._calls = 0
        self._answer: int | None = None  # the first final message
        self._since: list[Token] = []  # tokens behind the last that completed text
        self._held: list[tuple[str, list[Token]]] = []  # of text that may begin a stop
        self._reasoning = 0  # tokens
        self._ended = False  # by us: a stop text, a call too many

    def take(self) -> list[Piece | Finished]:
        """What is new, the reply's end included."""
        if self.finished is not None:
            return []
        pieces: list[Piece | Finished] = []
        done = self.running.done  # before the tokens are taken: none comes after it
        for token in self.running.take():
            self._since.append(token)
            for event in self._reply.feed(token.id):
                pieces += self._tell(event)
            if self._ended:
                self.running.cancel()
                done = True
                break
        if done:
            pieces += self._finish()
        return pieces

    def _tell(self, event: Event) -> list[Piece]:
        if self._ended:
            return []
        kind = event.kind
        tokens, self._since = self._since, []
        if kind == "analysis":
            self._reasoning += len(tokens)
        begins = event.message != self._message
        released = self._release() if begins else []
        self._message = event.message
        if kind == "final":
            return released + self._answer_text(event, self._spoken(tokens), begins)
        if kind == "call":
            return released + self._arguments(event, tokens, begins)
        # Commentary is for the user to read (a call's preamble), but no part of a JSON answer.
        shown = kind == "commentary" and self._turn.response_format is None
        part: Part = "content" if shown else "reasoning"
        said = self._spoken(tokens)
        return [*released, Piece(self._place, part, event.text, event, begins, None, said)]

    def _spoken(self, tokens: list[Token]) -> list[Token]:
        """Of those that ended in a text, the text's own: none of the header before it."""
        if self._turn.top_logprobs is None:
            return []
        behind = len(tokens)
        while behind and self._tokenizer.token_bytes(tokens[behind - 1].id):
            behind -= 1
        return tokens[behind:]

    def _answer_text(self, event: Event, tokens: list[Token], begins: bool) -> list[Piece]:
        if self._answer is None:
            self._answer = event.message
        elif self._turn.response_format is not None and event.message != self._answer:
            return []  # two objects are no JSON
        if not self._turn.stop:
            return [Piece(self._place, "content", event.text, event, begins, None, tokens)]
        self._held.append((event.text, tokens))
        text = self._stops.feed(event.text)
        self._ended = self._stops.hit
        return self._said(text, event, begins)

    def _said(self, text: str, event: Event, begins: bool) -> list[Piece]:
        """`text`, the beginning of what is held, with the tokens that it came with."""
        tokens, left = [], len(text)
        while self._held and left >= len(self._held[0][0]):
            said, own = self._held.pop(0)
            tokens += own
            left -= len(said)
        if left:
            self._held[0] = self._held[0][0][left:], self._held[0][1]
        if not text and not begins:
            return []
        return [Piece(self._place, "content", text, event, begins, None, tokens)]

    def _release(self) -> list[Piece]:
        """What was held back of a final message that is over."""
        text = self._stops.finish()
        self._held = self._held if text else []
        if not text:
            return []
        event = Event("final", text, self._message or 0)
        return self._said(text, event, False)

    def _arguments(self, event: Event, tokens: list[Token], begins: bool) -> list[Piece]:
        if begins:
            if self._calls and not self._turn.parallel_tool_calls:
                self._ended = True
                return []
            recipient = str(event.recipient)
            before = self._tokenizer.show(t.id for t in tokens).partition("<|channel|>")[0]
            call_id = new_call_id(recipient, event.channel, event.content_type, "to=" in before)
            known = called_name(recipient, self._turn.tool_names)
            self._call = Call(call_id, known or recipient.removeprefix(FUNCTIONS), self._calls)
            self._calls += 1
        return [Piece(self._place, "call", event.text, event, begins, self._call)]

    def _finish(self) -> list[Piece | Finished]:
        reason = "stop" if self._ended else self.running.finish_reason or "cancelled"
        pieces: list[Piece | Finished] = []
        ended, self._ended = self._ended, False
        for event in self._reply.finish("cancelled" if reason == "deadline" else reason):
            if not ended:
                pieces += self._tell(event)
        if not ended:
            pieces += self._release()
        self.finished = Finished(
            self._place,
            "tool_calls" if self._calls and reason == "stop" else reason,
            usage_of(self.running, self._reasoning, shared=self._place > 0),
            self._messages(),
            self.running.error,
        )
        return [*pieces, self.finished]

    def _messages(self) -> list[Message]:
        """The history's, cut where a stop text or a call too many ended the reply."""
        messages, calls = [], 0
        for message in self._reply.messages:
            calls += message.is_call
            if calls > 1 and not self._turn.parallel_tool_calls:
                break
            place = first_stop(message.content, self._turn.stop)
            if place is not None and message.channel == "final" and not message.is_call:
                return [*messages, replace(message, content=message.content[:place])]
            messages.append(message)
        return messages


def usage_of(running: Running, reasoning: int, *, shared: bool) -> TurnUsage:
    """`shared`: another choice counts the prompt."""
    used = running.usage
    prompt = (0, 0) if shared else (used.prompt_tokens, used.reused_tokens)
    return TurnUsage(*prompt, used.new_tokens, reasoning)
