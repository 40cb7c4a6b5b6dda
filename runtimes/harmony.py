"""The harmony chat format: messages to token ids. `stream_parser` reads a reply's ids back.

Prompts are built from ids: what a user typed is encoded as ordinary text, so it can never open a
message of its own. Rendering follows OpenAI's `openai-harmony` id for id; tests compare the two.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from gptoss_onnx.runtimes.harmony_tools import Tool as Tool
from gptoss_onnx.runtimes.harmony_tools import render_tools
from gptoss_onnx.runtimes.tokenizer import Tokenizer

CHANNELS = ("analysis", "commentary", "final")
STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
CONSTRAIN = "<|constrain|>"
FUNCTIONS = "functions."  # the namespace of an application's own tools
# Those a message can be meant for without being a call.
_NO_TOOLS = (None, "all", "assistant", "user")
_SPEAKERS = ("system", "developer", "user", "assistant")  # every other role is a tool


@dataclass(frozen=True)
class Message:
    """One message. A tool's result has the tool's name as role (`functions.weather`).

    A call names its tool behind the channel, as models write it, or before it: `recipient_in_role`.
    """

    role: str
    content: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    recipient_in_role: bool = False

    @property
    def is_call(self) -> bool:
        return self.role == "assistant" and self.recipient not in _NO_TOOLS


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


class Harmony:
    """Renders conversations for one tokenizer; ValueError when it lacks harmony's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._start, self._channel, self._message, self._end = map(
            tokenizer.special, ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
        )
        self.stop_ids = frozenset(tokenizer.special(s) for s in STOPS if tokenizer.has_special(s))

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
        for message in (*head, *shown_messages(messages)):
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
        named = message.recipient is not None and message.recipient != "all"
        recipient = encode(f" to={message.recipient}") if named else []
        if message.channel is None or message.role != "assistant" or message.recipient_in_role:
            ids, recipient = ids + recipient, []
        if message.channel is not None:
            ids += [self._channel, *encode(message.channel), *recipient]
        if message.content_type is not None:
            if message.content_type.startswith(CONSTRAIN):
                ids += [*encode(" "), self.tokenizer.special(CONSTRAIN)]
                ids += encode(message.content_type.removeprefix(CONSTRAIN))
            else:
                ids += encode(f" {message.content_type}")
        ids += [self._message, *encode(message.content)]
        # History is what was said, not where sampling stopped: a stored <|return|> becomes <|end|>.
        calls = message.role == "assistant" and message.recipient is not None
        return [*ids, self.tokenizer.special("<|call|>") if calls else self._end]


def shown_messages(messages: Sequence[Message]) -> list[Message]:
    """What of a history the model is shown, with no call or result that lacks the other.

    The reasoning of answered turns is dropped, that of a turn still calling tools stays. Calls stay
    with their results, on any channel; a call that had none when the user spoke again is dropped. A
    result takes the name its call was made by.
    """
    answers = [i for i, m in enumerate(messages) if _is_answer(m)]
    shown: list[Message] = []
    waiting: list[tuple[int, str]] = []  # calls without a result: place in `shown`, tool's name
    dropped: set[int] = set()
    for place, message in enumerate(messages):
        reasoning = message.role == "assistant" and message.channel == "analysis"
        if reasoning and not message.is_call and answers and place < answers[-1]:
            continue
        if message.is_call:
            waiting.append((len(shown), str(message.recipient)))
        elif message.role == "user":
            dropped |= {call for call, _ in waiting}
            waiting = []
        elif message.role not in _SPEAKERS:
            name = called_name(message.role, [tool for _, tool in waiting])
            if name is not None:
                del waiting[[tool for _, tool in waiting].index(name)]
                message = replace(message, role=name)
        shown.append(message)
    return [message for place, message in enumerate(shown) if place not in dropped]


def _is_answer(message: Message) -> bool:
    return (message.role, message.channel) == ("assistant", "final") and not message.is_call


def called_name(name: str, called: Collection[str]) -> str | None:
    """Which of the names in `called` is meant by `name`: itself, or with or without `functions.`"""
    forms = (name, FUNCTIONS + name, name.removeprefix(FUNCTIONS))
    return next((form for form in forms if form in called), None)
