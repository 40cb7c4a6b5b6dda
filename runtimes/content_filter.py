"""Content filters: what one is asked, and the gate that holds a reply's text until it is cleared.

A filter reviews texts that grow. Of a reply it sees, for each kind, everything that was said of
that kind, with a blank line between messages: what is cut in two is seen together. In front of a
message stands what its header holds in the model's own words, as the name of a tool.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

from gptoss_onnx.runtimes.harmony import Message, Tool, ToolNamespace
from gptoss_onnx.runtimes.harmony_tools import in_namespaces, render_tools
from gptoss_onnx.runtimes.stream_parser import Event

Kind = Literal["prompt", "analysis", "commentary", "final", "call"]
APART = "\n\n"  # between messages of one kind
UNCLEARED = "the filter has not cleared the text to its end"
FAILED = "the filter failed"
_ROLES = ("system", "developer", "user", "assistant")  # every other is a tool's name


@dataclass(frozen=True)
class Review:
    """`cleared`: characters, from the text's start, that may be shown.

    `blocked`: the rule that forbids the text, in words for the log; nothing more is shown then.
    """

    cleared: int = 0
    blocked: str | None = None


class Reviewer(Protocol):
    """Of one text that grows. One thread at a time."""

    def feed(self, text: str) -> Review:
        """More of the text. What may become a forbidden text with what follows is not cleared."""

    def finish(self) -> Review:
        """A message ends here: all is cleared, or blocked. Another one may follow in `feed`."""


class ContentFilter(Protocol):
    """What prompts and answers may hold. Used by many threads at once."""

    @property
    def slow(self) -> bool:
        """Whether a review may take so long that an event loop should leave it to a thread."""

    def begin(self, kind: Kind) -> Reviewer:
        """For a new text of that kind."""


def review(content_filter: ContentFilter, kind: Kind, texts: Iterable[str]) -> str | None:
    """The rule that forbids `texts`, complete ones, together; None when all of it is cleared."""
    whole = APART.join(texts)
    if not whole:
        return None
    reviewer = content_filter.begin(kind)
    fed = reviewer.feed(whole)
    if fed.blocked is not None:
        return fed.blocked
    return _to_the_end(reviewer.finish(), len(whole)).blocked


def prompt_texts(
    messages: Sequence[Message],
    instructions: str | None = None,
    tools: Sequence[Tool | ToolNamespace] = (),
) -> list[str]:
    """What a prompt says in its author's words: instructions, declared tools, each message."""
    texts = [instructions or "", render_tools(in_namespaces(tools)) if tools else ""]
    texts += map(message_text, messages)
    # As the tokenizer reads them: JSON can smuggle in a character as two halves.
    whole = (t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in texts)
    return [text for text in whole if text]


def message_text(message: Message) -> str:
    """A message as it is reviewed."""
    role = None if message.role in _ROLES else message.role
    return _heading(role, message.recipient, message.content_type) + message.content


def _heading(*names: str | None) -> str:
    words = " ".join(filter(None, names))
    return f"{words}\n" if words else ""


def _to_the_end(review: Review, size: int) -> Review:
    """The review of a complete text, `size` characters long."""
    uncleared = review.blocked is None and review.cleared < size
    return replace(review, blocked=UNCLEARED) if uncleared else review


class EventGate:
    """Lets a reply's events pass as far as a filter clears them, nothing once it has blocked."""

    def __init__(self, content_filter: ContentFilter) -> None:
        self.blocked: str | None = None  # the rule
        self.passed: dict[int, int] = {}  # characters, of each message by its number
        self._filter = content_filter
        self._reviewers: dict[str, Reviewer] = {}
        self._fed: dict[str, int] = {}  # characters, for each kind
        self._event: Event | None = None  # one of the message under review
        self._held = ""  # of its text
        self._start = 0  # where the message's own text begins in what its reviewer was fed

    def feed(self, events: Sequence[Event], ended: bool) -> list[Event]:
        """What may be told now. `ended`: the message of the last event told so far is complete."""
        passed = []
        try:
            for event in events:
                if self.blocked is None:
                    passed += self._take(event)
            if ended and self.blocked is None:
                passed += self._end()
        except BaseException:
            self.blocked, self._held = FAILED, ""
            raise
        return passed

    def _take(self, event: Event) -> list[Event]:
        kind = event.kind
        if kind not in self._reviewers:
            self._reviewers[kind] = self._filter.begin(cast(Kind, kind))
            self._fed[kind] = 0
        before = ""
        if self._event is None:
            before = APART if self._fed[kind] else ""
            before += _heading(event.recipient, event.content_type)
            self._start = self._fed[kind] + len(before)
        self._event = event
        self._held += event.text
        self._fed[kind] += len(before) + len(event.text)
        return self._pass(event, self._reviewers[kind].feed(before + event.text))

    def _end(self) -> list[Event]:
        event, self._event = self._event, None
        if event is None:
            return []
        review = self._reviewers[event.kind].finish()
        return self._pass(event, _to_the_end(review, self._fed[event.kind]))

    def _pass(self, event: Event, review: Review) -> list[Event]:
        if review.blocked is not None:
            self.blocked, self._held = review.blocked, ""
            return []
        passed = self.passed.get(event.message, 0)
        ready = max(0, review.cleared - self._start - passed)
        text, self._held = self._held[:ready], self._held[ready:]
        self.passed[event.message] = passed + len(text)
        return [replace(event, text=text)] if text else []
