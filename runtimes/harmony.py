"""The harmony chat format: messages to token ids, and a reply's token ids back to messages.

Prompts are built from ids: what a user typed is encoded as ordinary text, so it can never open a
message of its own. Rendering follows OpenAI's `openai-harmony` id for id; tests compare the two.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gptoss_onnx.runtimes.harmony_tools import Tool as Tool
from gptoss_onnx.runtimes.harmony_tools import render_tools
from gptoss_onnx.runtimes.tokenizer import IncrementalDecoder, Tokenizer

CHANNELS = ("analysis", "commentary", "final")
_STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
_CONSTRAIN = "<|constrain|>"
# A header is a role, a recipient, a channel and a content type. Longer text is a model that left
# the format, and is passed on as content instead of being held back for ever.
_LONGEST_HEADER = 256


@dataclass(frozen=True)
class Message:
    """One message. A tool's result has the tool's name as role (`functions.weather`)."""

    role: str
    content: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


@dataclass(frozen=True)
class SystemPrompt:
    """What the system message says. `date` is ISO 8601, None for today."""

    identity: str = "You are ChatGPT, a large language model trained by OpenAI."
    knowledge_cutoff: str = "2024-06"
    date: str | None = None
    reasoning: str = "medium"

    def text(self, *, has_tools: bool = False) -> str:
        date = self.date or datetime.date.today().isoformat()
        channels = ", ".join(CHANNELS)
        text = (
            f"{self.identity}\nKnowledge cutoff: {self.knowledge_cutoff}\nCurrent date: {date}"
            f"\n\nReasoning: {self.reasoning}"
            f"\n\n# Valid channels: {channels}. Channel must be included for every message."
        )
        if has_tools:
            text += "\nCalls to these tools must go to the commentary channel: 'functions'."
        return text


_DEFAULT_SYSTEM = SystemPrompt()


@dataclass(frozen=True)
class Event:
    """A piece of a reply: whole characters of one channel."""

    channel: str
    text: str


class Harmony:
    """Renders conversations for one tokenizer; ValueError when it lacks harmony's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._start, self._channel, self._message, self._end = map(
            tokenizer.special, ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
        )
        self.stop_ids = frozenset(tokenizer.special(s) for s in _STOPS if tokenizer.has_special(s))

    def render(
        self,
        messages: Sequence[Message],
        *,
        system: SystemPrompt | None = _DEFAULT_SYSTEM,
        instructions: str | None = None,
        tools: Sequence[Tool] = (),
        reply: bool = True,
    ) -> list[int]:
        """Ids of a conversation, with the assistant's turn opened at the end when `reply`."""
        head: list[Message] = []
        if system:
            head.append(Message("system", system.text(has_tools=bool(tools))))
        sections = [f"# Instructions\n\n{instructions}"] if instructions is not None else []
        if tools:
            sections.append(render_tools(tools))
        if sections:
            head.append(Message("developer", "\n\n".join(sections)))
        ids: list[int] = []
        for message in (*head, *_without_old_analysis(messages)):
            ids += self._render_message(message)
        return ids + self._open_reply() if reply else ids

    def render_completion(self, analysis: str, final: str) -> list[int]:
        """Ids of a reply as the model writes it after `<|start|>assistant`, for training."""
        opened = len(self._open_reply())
        ids = self._render_message(Message("assistant", analysis, "analysis"))
        ids += self._render_message(Message("assistant", final, "final"))
        return [*ids[opened:-1], self.tokenizer.special("<|return|>")]

    def _open_reply(self) -> list[int]:
        return [self._start, *self.tokenizer.encode("assistant")]

    def _render_message(self, message: Message) -> list[int]:
        encode = self.tokenizer.encode
        ids = [self._start, *encode(message.role)]
        if message.recipient is not None and message.recipient != "all":
            ids += encode(f" to={message.recipient}")
        if message.channel is not None:
            ids += [self._channel, *encode(message.channel)]
        if message.content_type is not None:
            if message.content_type.startswith(_CONSTRAIN):
                ids += [*encode(" "), self.tokenizer.special(_CONSTRAIN)]
                ids += encode(message.content_type.removeprefix(_CONSTRAIN))
            else:
                ids += encode(f" {message.content_type}")
        ids += [self._message, *encode(message.content)]
        # History is what was said, not where sampling stopped: a stored <|return|> becomes <|end|>.
        calls = message.role == "assistant" and message.recipient is not None
        return [*ids, self.tokenizer.special("<|call|>") if calls else self._end]


def _without_old_analysis(messages: Sequence[Message]) -> list[Message]:
    """Drop the reasoning of answered turns; that of a turn still calling tools stays."""
    finals = [i for i, m in enumerate(messages) if (m.role, m.channel) == ("assistant", "final")]
    last = max(finals, default=-1)
    return [m for i, m in enumerate(messages) if i > last or m.channel != "analysis"]


class StreamParser:
    """Reads a reply token by token, from behind `<|start|>assistant`.

    Models leave the format now and then, so no sequence of tokens is an error: a header is read
    for what it holds, in any order, and text that never becomes a header is content.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.messages: list[Message] = []  # those completed so far
        self._decoder = IncrementalDecoder(tokenizer)
        marks = ("<|start|>", "<|end|>", _CHANNEL, _CONSTRAIN, _MESSAGE, *_STOPS)
        self._marks = {tokenizer.special(m): m for m in marks if tokenizer.has_special(m)}
        self._role = "assistant"  # what the next message's author is known to be
        self._header: str | None = ""  # None while reading content
        self._open = Message("assistant", "")
        self._content: list[str] = []

    def feed(self, token: int) -> list[Event]:
        """What `token` completes: mostly one event or none."""
        mark = self._marks.get(token)
        if mark is None:
            return self._text(self._decoder.feed(token))
        events = self._text(self._decoder.finish())
        if self._header is not None and mark in (_CHANNEL, _CONSTRAIN, _MESSAGE):
            return events + self._text(mark)
        if mark in (_CONSTRAIN, _MESSAGE):  # amid content they mean nothing
            return events
        author = self._open.role
        events += self._close()
        if mark == _CHANNEL:  # a message without an end before it: the same author goes on
            self._role, self._header = author, _CHANNEL
        return events

    def finish(self) -> list[Event]:
        """The end of the reply: held back bytes, and a message that nothing has closed."""
        return self._text(self._decoder.finish()) + self._close()

    def _text(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._header is None:
            self._content.append(text)
            return [Event(self._open.channel or "final", text)]
        self._header += text
        # Also the mark spelled in letters, which models that lost their special tokens write.
        header, mark, content = self._header.partition(_MESSAGE)
        if mark:
            self._begin(_parse_header(self._role, header))
            return self._text(content)
        return self._give_up_header() if len(header) > _LONGEST_HEADER else []

    def _begin(self, message: Message) -> None:
        self._open, self._header, self._content = message, None, []

    def _give_up_header(self) -> list[Event]:
        """The model left the format: what looked like a header is what it said."""
        header = self._header or ""
        named = re.match(rf"[^<]*{re.escape(_CHANNEL)}({'|'.join(CHANNELS)})\b", header)
        # A channel that was named still holds: reasoning must not turn into an answer.
        channel, said = (named[1], header[named.end() :]) if named else ("final", header)
        self._begin(Message("assistant", "", channel))
        return self._text(said.replace(_CHANNEL, "").replace(_CONSTRAIN, ""))

    def _close(self) -> list[Event]:
        """Complete the open message and expect the next one's header."""
        events: list[Event] = []
        if self._header is not None:
            words = self._header.strip()
            message = _parse_header(self._role, self._header)
            _, named, behind = words.partition(_CHANNEL)
            # Without its content a header still says what it says, but more words are an answer.
            if message.recipient or (named and len(behind.split()) < 2):
                self._begin(message)
            elif words and (self._role or not "assistant".startswith(words)):
                events = self._give_up_header()
        if self._header is None:
            self.messages.append(replace(self._open, content="".join(self._content)))
        self._role, self._header = "", ""
        return events


def _parse_header(role: str, header: str) -> Message:
    """`[role] [to=name] [<|channel|>name] [to=name] [<|constrain|>type]`; `role` if known."""
    # A channel whose mark is missing sticks to the role.
    header = re.sub(rf"^\s*assistant({'|'.join(CHANNELS)})\b", rf"assistant{_CHANNEL}\1", header)
    header = re.sub(rf"\s*{re.escape(_CONSTRAIN)}\s*", f" {_CONSTRAIN}", header)
    channel = recipient = None
    types: list[str] = []
    marked = False
    for word in header.replace(_CHANNEL, f" {_CHANNEL} ").split():
        if word == _CHANNEL:
            marked = True
        elif word.startswith("to="):
            recipient = word.removeprefix("to=") or recipient
        elif channel is None and (marked or word in CHANNELS) and not word.startswith(_CONSTRAIN):
            channel = word
        elif not role and not marked:
            role = word
        elif word != role:
            types.append(word)
    role = role or "assistant"
    if channel is None and role == "assistant":
        # A call is not for the user to read, so without a channel it takes the calls' own.
        channel = "commentary" if recipient else "final"
    return Message(role, "", channel, recipient, " ".join(types) or None)
