"""The harmony chat format: messages to token ids. `stream_parser` reads a reply's ids back.

Prompts are built from ids: what a user typed is encoded as ordinary text, so it can never open a
message of its own. Rendering follows OpenAI's `openai-harmony` id for id; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from gptoss_onnx.runtimes.harmony_tools import FUNCTION_NAMESPACE, in_namespaces, render_tools
from gptoss_onnx.runtimes.harmony_tools import Tool as Tool
from gptoss_onnx.runtimes.harmony_tools import ToolNamespace as ToolNamespace
from gptoss_onnx.runtimes.system_prompt import CHANNELS as CHANNELS
from gptoss_onnx.runtimes.system_prompt import SystemPrompt as SystemPrompt
from gptoss_onnx.runtimes.tokenizer import Tokenizer

STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
CONSTRAIN = "<|constrain|>"
FUNCTIONS = f"{FUNCTION_NAMESPACE}."
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


_DEFAULT_SYSTEM = SystemPrompt()


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens a reply ends with, those that the tokenizer has."""
    return frozenset(tokenizer.special(name) for name in STOPS if tokenizer.has_special(name))


class Harmony:
    """Renders conversations for one tokenizer; ValueError when it lacks harmony's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._start, self._channel, self._message, self._end = map(
            tokenizer.special, ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
        )
        self.stop_ids = stop_ids(tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        *,
        system: SystemPrompt | None = _DEFAULT_SYSTEM,
        instructions: str | None = None,
        tools: Sequence[Tool | ToolNamespace] = (),
        auto_drop_analysis: bool = True,
        reply: bool = True,
    ) -> list[int]:
        """Ids of a conversation, with the assistant's turn opened at the end when `reply`.

        `auto_drop_analysis`: the reasoning of answered turns is left out, as the format says.
        UserError for tools that cannot be declared.
        """
        namespaces = in_namespaces(tools)
        head: list[Message] = []
        if system:
            functions = any(n.name == FUNCTION_NAMESPACE and n.tools for n in namespaces)
            head.append(Message("system", system.text(has_functions=functions)))
        sections = [f"# Instructions\n\n{instructions}"] if instructions is not None else []
        if namespaces:
            sections.append(render_tools(namespaces))
        if sections:
            head.append(Message("developer", "\n\n".join(sections)))
        ids: list[int] = []
        for message in (*head, *shown_messages(messages, auto_drop_analysis)):
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


def shown_messages(messages: Sequence[Message], auto_drop_analysis: bool = True) -> list[Message]:
    """What of a history the model is shown, with no call or result that lacks the other.

    The reasoning of answered turns is dropped unless `auto_drop_analysis` is off, that of a turn
    still calling tools stays. Calls stay
    with their results, on any channel; a call that had none when the user spoke again is dropped. A
    result takes the name its call was made by.
    """
    answers = [i for i, m in enumerate(messages) if auto_drop_analysis and _is_answer(m)]
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
