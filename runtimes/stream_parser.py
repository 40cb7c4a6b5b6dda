"""A reply's token ids back to messages, as they come, each piece with what it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from gptoss_onnx.runtimes.harmony import CONSTRAIN, STOPS, Message
from gptoss_onnx.runtimes.header import (
    CHANNEL,
    TEXT_TOOLS,
    Header,
    names_tool,
    read_header,
    without_content,
)
from gptoss_onnx.runtimes.tokenizer import IncrementalDecoder, Tokenizer

_MESSAGE, _CALL = "<|message|>", "<|call|>"
_ANSWER_ENDS = ("<|return|>", "<|endoftext|>")
_BLANK = " \t\n\r"  # JSON's white space
# A header is a role, a recipient, a channel and a content type. Longer text that names the answer's
# or reasoning's channel, or none, is passed on as it comes instead of being held back for ever.
_LONGEST_HEADER = 256
_OTHERS = ("user", "system", "developer", "tool")


@dataclass(frozen=True)
class Event:
    """A piece of a reply: whole characters of one message, and what they are."""

    channel: str
    text: str
    message: int = 0  # pieces of one message have the same number, counted from 0 in a reply
    recipient: str | None = None  # the tool that a call is for: `text` is of its arguments
    content_type: str | None = None

    @property
    def kind(self) -> str:
        """`analysis`, `commentary`, `final`, or `call` on any channel."""
        return self.channel if self.recipient is None else "call"


def kind_of(message: Message) -> str:
    """As `Event.kind`."""
    return "call" if message.is_call else message.channel or "final"


class StreamParser:
    """Reads a reply token by token, from behind `<|start|>assistant`.

    Models leave the format now and then, so no sequence of tokens is an error:

    - a header is read for what it holds, in any order (`header`);
    - a tool named without `to=` is called by a message that ends in `<|call|>`;
    - arguments without `<|message|>` begin at the first brace; without any there is no call;
    - text behind `<|channel|>` that names no channel is an answer only as the reply's last message;
    - what is written in another's name is a message of theirs and no event.

    What cannot be told yet is held back until its message ends.
    """

    def __init__(
        self, tokenizer: Tokenizer, tools: Collection[str] = (), stop_ids: Collection[int] = ()
    ) -> None:
        """`tools` are the names of those that the model may call.

        Tokens of `stop_ids` that are no marks of harmony's end the reply as its own do.
        """
        self.messages: list[Message] = []  # those completed so far
        self._tools = frozenset(tools)
        self._decoder = IncrementalDecoder(tokenizer)
        marks = ("<|start|>", "<|end|>", CHANNEL, CONSTRAIN, _MESSAGE, *STOPS)
        known = {tokenizer.special(m): m for m in marks if tokenizer.has_special(m)}
        self._marks = dict.fromkeys(stop_ids, STOPS[0]) | known
        self._role = "assistant"  # what the next message's author is known to be
        self._header: str | None = ""  # None while reading content
        self._held_header = False  # beyond its longest
        self._open = Header(Message("assistant", ""), None, False, True)
        self._content: list[str] = []
        self._unsaid: list[str] = []  # of it, what no event told yet
        self._told = False  # whether one told any
        self._count = 0  # the assistant's messages
        self._answered = False

    def feed(self, token: int) -> list[Event]:
        """What `token` completes: mostly one event or none."""
        mark = self._marks.get(token)
        if mark is None:
            return self._text(self._decoder.feed(token))
        events = self._text(self._decoder.finish())
        if self._header is not None and mark in (CHANNEL, CONSTRAIN, _MESSAGE):
            return events + self._text(mark)
        if mark in (CONSTRAIN, _MESSAGE):  # amid content they mean nothing
            return events
        author = self._open.message.role
        events += self._close(mark)
        if mark == CHANNEL:  # a message without an end before it: the same author goes on
            self._role, self._header = author, CHANNEL
        return events

    def finish(self) -> list[Event]:
        """The end of the reply: held back bytes, and a message that nothing has closed."""
        return self._text(self._decoder.finish()) + self._close(None)

    def _text(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._header is None:
            return self._say(text)
        known = len(self._header)
        self._header += text
        # Also the mark spelled in letters, which models that lost their special tokens write.
        end = self._header.find(_MESSAGE, max(0, known - len(_MESSAGE)))
        if end >= 0:
            content = self._header[end + len(_MESSAGE) :]
            self._begin(self._read(self._header[:end]))
            return self._say(content) if content else []
        if "{" in text and "{" not in self._header[:known]:
            before, brace, behind = self._header.partition("{")
            header = self._read(before)
            if header.clean and _takes_json(header.message):
                self._begin(header)
                return self._say(brace + behind)
            self._held_header = header.clean and header.tool is not None
        if self._held_header or len(self._header) <= _LONGEST_HEADER:
            return []
        channel, said = without_content(self._header, self._role)
        called = self._read(self._header).message.recipient
        if channel is None or called or self._by_another(self._header, cut=False):
            self._held_header = True
            return []
        self._begin_text(channel or "final")
        return self._say(said)

    def _read(self, header: str) -> Header:
        return read_header(header, self._role, self._tools)

    def _begin(self, header: Header) -> None:
        self._open, self._header = header, None
        self._content, self._unsaid, self._told = [], [], False

    def _begin_text(self, channel: str) -> None:
        self._begin(Header(Message("assistant", "", channel), None, False, True))

    def _say(self, text: str) -> list[Event]:
        self._content.append(text)
        self._unsaid.append(text)
        held = self._open.tool is not None or self._open.unnamed
        return [] if held else self._tell(self._open.message)

    def _tell(self, message: Message) -> list[Event]:
        text = "".join(self._unsaid)
        # Arguments that never come are no call: none begins before they do.
        waits = message.is_call and not self._told and not text.strip(_BLANK)
        if not text or waits or message.role != "assistant":
            return []
        self._told = True
        self._unsaid = []
        place, channel = self._count, message.channel or "final"
        return [Event(channel, text, place, message.recipient, message.content_type)]

    def _close(self, mark: str | None) -> list[Event]:
        """Complete the open message, by `mark` or where the reply was cut; expect a header."""
        events = self._close_header(mark, self._header) if self._header is not None else []
        if self._header is None:
            events += self._complete(mark)
        self._role, self._header, self._held_header = "", "", False
        return events

    def _close_header(self, mark: str | None, header: str) -> list[Event]:
        """Begin the message of a header that ended without `<|message|>`, if it says anything."""
        before, brace, behind = header.partition("{")
        found = self._read(before)
        if brace and found.clean and found.tool and mark in (_CALL, None):
            self._begin(found)
            return self._say(brace + behind)
        called = self._read(header).message.recipient  # without arguments: no call
        if called or self._by_another(header, cut=mark is None):
            return []
        channel, said = without_content(header, self._role)
        words = said.split()
        if not words or (mark is None and channel != "" and len(words) == 1):
            return []  # at most the beginning of a header
        if not channel:
            answer = not self._answered and (
                mark in _ANSWER_ENDS or (mark is None and channel == "")
            )
            if channel is None and not answer and len(words) == 1:
                return []
            channel = "final" if answer else "analysis"
        self._begin_text(channel)
        return self._say(said)

    def _by_another(self, header: str, *, cut: bool) -> bool:
        """Whether a header without content begins with the name of another than the assistant."""
        words = header.replace(CHANNEL, " ").split()
        if self._role or not words:
            return False
        roles = ("assistant", *_OTHERS) if cut and words[0] != "assistant" else ()
        return (
            words[0] in _OTHERS
            or names_tool(words[0], self._tools)
            or any(role.startswith(words[0]) for role in roles)
        )

    def _complete(self, mark: str | None) -> list[Event]:
        header = self._open
        message = replace(header.message, content="".join(self._content))
        # Where the reply was cut, it was on its way to be a call, unless a tool seems to speak.
        ends = (_CALL, None) if message.role == "assistant" else (_CALL,)
        if header.tool is not None and mark in ends:
            message = replace(message, role="assistant", recipient=header.tool)
            if message.channel in (None, "final"):
                message = replace(message, channel="commentary")
        elif header.unnamed and not message.is_call and message.role == "assistant":
            answer = mark in _ANSWER_ENDS and not self._answered
            message = replace(message, channel="final" if answer else "analysis")
        if message.is_call and not message.content.strip(_BLANK):
            return []
        events = self._tell(message)
        self.messages.append(message)
        if message.role == "assistant":
            self._count += 1
            self._answered |= message.channel == "final" and bool(message.content.strip())
        return events


def _takes_json(message: Message) -> bool:
    return message.is_call and message.recipient not in TEXT_TOOLS
