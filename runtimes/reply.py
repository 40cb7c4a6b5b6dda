"""What a model answers: its tokens to what a caller sees, the same in every entry."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from gptoss_onnx.runtimes.content_filter import ContentFilter, EventGate
from gptoss_onnx.runtimes.generation import FinishReason
from gptoss_onnx.runtimes.harmony import Message
from gptoss_onnx.runtimes.header import TEXT_TOOLS
from gptoss_onnx.runtimes.stream_parser import Event, StreamParser, kind_of
from gptoss_onnx.runtimes.tokenizer import Tokenizer

Cut = Callable[[list[Event], bool], list[Event]]


@dataclass(frozen=True)
class ToolCall:
    """What the model asked for: `name` and `arguments` as it wrote them, of a tool or of none."""

    name: str  # as `functions.weather`
    arguments: str  # a JSON object, unless `error` says that it is none
    channel: str = "commentary"

    @property
    def error(self) -> str | None:
        """Why the call cannot be made, for the model to read: one line; None when it can."""
        if self.name in TEXT_TOOLS or _is_object(self.arguments):
            return None
        return (
            "Error: the arguments are no JSON object, so nothing was called. Call again with one."
        )


def _is_object(text: str) -> bool:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return isinstance(json.loads(text, parse_constant=refuse), dict)
    except (ValueError, RecursionError):
        return False


class Reply:
    """A reply on its way: feed it tokens and it tells events; all else is whole after `finish`.

    With a content filter every text is held until it is cleared. Once one is blocked, nothing more
    comes out, here or by any property, and no call is made.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tools: Collection[str] = (),
        stop_ids: Collection[int] = (),
        content_filter: ContentFilter | None = None,
        cut: Cut | None = None,
    ) -> None:
        """As `StreamParser`.

        `cut(events, ended)` says what of them is told, before it is reviewed; `ended`: the message
        of the last event so far is complete.
        """
        self.text = ""  # the answer: what the final channel says
        self.finish_reason: FinishReason | Literal["tool_call", "content_filter"] | None = None
        self.blocked: str | None = None  # the filter's rule: no more tokens are wanted
        self._parser = StreamParser(tokenizer, tools, stop_ids)
        self._gate = EventGate(content_filter) if content_filter is not None else None
        self._cut = cut
        self._answer: int | None = None  # the last message in `text`

    def feed(self, token: int) -> list[Event]:
        """What `token` completes, as far as it is cleared."""
        if self.blocked is not None:
            return []
        complete = len(self._parser.messages)
        events = self._parser.feed(token)
        return self._tell(events, len(self._parser.messages) > complete)

    def finish(self, reason: FinishReason) -> list[Event]:
        """What was held back; `reason` is why no more tokens come."""
        if self.finish_reason is not None:
            return []
        self.finish_reason = reason
        events = self._tell(self._parser.finish(), True)
        if self.calls:
            self.finish_reason = "tool_call"
        return events

    def block(self, rule: str) -> None:
        """End the reply: a filter's `rule` forbids it, or the prompt it was to answer."""
        self.blocked, self.finish_reason = rule, "content_filter"
        self._parser.finish()  # the message it was blocked in is part of what was said

    def _tell(self, events: list[Event], ended: bool) -> list[Event]:
        if self._cut is not None:
            events = self._cut(events, ended)
        if self._gate is not None:
            events = self._gate.feed(events, ended)
            if self._gate.blocked is not None:
                self.block(self._gate.blocked)
        for event in events:
            if event.kind == "final":
                apart = "\n\n" if self._answer not in (None, event.message) else ""
                self.text += apart + event.text
                self._answer = event.message
        return events

    @property
    def said(self) -> list[Message]:
        """The assistant's messages so far, the last one maybe cut."""
        # A model that left the format may speak for others: that is no part of its reply.
        said = [message for message in self._parser.messages if message.role == "assistant"]
        if self._gate is None:
            return said
        passed = self._gate.passed
        cleared = (replace(m, content=m.content[: passed.get(i, 0)]) for i, m in enumerate(said))
        # The header of an empty message was not reviewed.
        return [message for message in cleared if message.content]

    @property
    def complete(self) -> bool:
        return self.finish_reason in ("stop", "tool_call")

    @property
    def messages(self) -> list[Message]:
        """What to add to the history.

        Of a reply that was cut, what a reader saw: its reasoning and calls are dropped, so that the
        next turn starts from a conversation the model knows the form of.
        """
        if self.complete:
            return self.said
        shown = ("commentary", "final")
        return [m for m in self.said if kind_of(m) in shown and m.content.strip()]

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of a complete reply, in order."""
        return [
            ToolCall(str(m.recipient), m.content, m.channel or "commentary")
            for m in (self.said if self.complete else ())
            if m.is_call
        ]

    @property
    def cut_in(self) -> str | None:
        """Of a reply that was cut: which kind of message it was in; None of a complete one."""
        if self.complete or self.finish_reason is None:
            return None
        return kind_of(self.said[-1]) if self.said else "analysis"


def read_reply(
    tokenizer: Tokenizer,
    ids: Iterable[int],
    reason: FinishReason,
    tools: Collection[str] = (),
    stop_ids: Collection[int] = (),
    content_filter: ContentFilter | None = None,
) -> Reply:
    """A reply that is there already, from its `ids`."""
    reply = Reply(tokenizer, tools, stop_ids, content_filter)
    for token in ids:
        reply.feed(token)
    reply.finish(reason)
    return reply
