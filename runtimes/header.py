"""A message's header as a model wrote it, to what it was understood to be.

`[role] [to=name] [<|channel|>name] [to=name] [<|constrain|>type]`, in any order, with words too
many or too few. What is stored is clean: no mark stays in a name as letters.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from gptoss_onnx.runtimes.harmony import CHANNELS, CONSTRAIN, FUNCTIONS, Message, called_name

CHANNEL = "<|channel|>"
_NAMES = "|".join(CHANNELS)
_NAMED_CHANNEL = re.compile(rf"[^<]*{re.escape(CHANNEL)}({_NAMES})\b")
_STUCK_CHANNEL = re.compile(rf"^\s*assistant({_NAMES})\b")
_TYPE = re.compile(rf"({re.escape(CONSTRAIN)})?[A-Za-z0-9_.+/-]+")
# Tools that take text as it stands, no JSON object.
TEXT_TOOLS = ("python",)


@dataclass(frozen=True)
class Header:
    """`message` without its content; what else the header says of it.

    `tool` is named without `to=`: a call if the message ends as one. `unnamed` is a channel that
    the format does not have. `clean`: nothing else stands in the header.
    """

    message: Message
    tool: str | None
    unnamed: bool
    clean: bool


def read_header(text: str, role: str, tools: Collection[str]) -> Header:
    """Read `text`; `role` is its author where known, else empty, `tools` the known tools' names."""
    # A channel whose mark is missing sticks to the role.
    text = _STUCK_CHANNEL.sub(rf"assistant{CHANNEL}\1", text)
    text = re.sub(rf"\s*{re.escape(CONSTRAIN)}\s*", f" {CONSTRAIN}", text)
    channel = recipient = None
    in_role = marked = False
    words: list[str] = []  # beyond role, channel and recipient
    types: list[str] = []  # behind <|constrain|>
    for word in text.replace(CHANNEL, f" {CHANNEL} ").split():
        if word == CHANNEL:
            marked = True
        elif word.startswith("to="):
            named = _name(word.removeprefix("to="))
            recipient, in_role = (named, not marked) if named else (recipient, in_role)
        elif word.startswith(CONSTRAIN):
            types += [word] if _TYPE.fullmatch(word) else []
        elif word in CHANNELS and not (marked and words):
            channel = channel or word
        elif not role and not marked:
            role = _name(word)
        elif word != role:
            words.append(word)
    role = role or "assistant"
    tool = None
    if recipient is None:
        tool = next((n for n in map(_name, (role, *words)) if names_tool(n, tools)), None)
        words = [word for word in words if _name(word) != tool]
    unnamed = channel is None and marked and bool(words or tool)
    # Behind its mark, or the only word: several are text.
    typed = types[:1] or (words if len(words) == 1 and not unnamed else [])
    content_type = next((word for word in typed if _TYPE.fullmatch(word)), None)
    clean = not [word for word in words if word != content_type]
    if role == "assistant":
        message = Message(role, "", channel, recipient, content_type, in_role)
        if not message.is_call:
            message = Message(role, "", channel or "final", None, content_type)
        elif channel in (None, "final"):  # a call is not for the user to read
            message = Message(role, "", "commentary", recipient, content_type, in_role)
    else:
        message = Message(role, "", channel, recipient, content_type)
    return Header(message, tool, unnamed, clean)


def _name(word: str) -> str:
    """Without what sticks to a name: marks in letters, arguments."""
    return re.split(r"<\||\{", word, maxsplit=1)[0]


def names_tool(word: str, tools: Collection[str]) -> bool:
    """Whether `word` is a tool's name: in the namespace of functions, or that of a known one."""
    function = word.startswith(FUNCTIONS) and word != FUNCTIONS
    return function or called_name(word, tools) is not None


def without_content(text: str, role: str) -> tuple[str | None, str]:
    """Of a header that no content followed: the channel it names, and what else it says.

    The channel is None where it names one that the format does not have, "" where it names none.
    """
    named = _NAMED_CHANNEL.match(text)
    if named:
        channel, said = named[1], text[named.end() :]
    else:
        channel, said = None if CHANNEL in text else "", text
    if not role:
        said = re.sub(r"^\s*assistant\b", "", said)
    # A type that JSON follows, or one behind its mark, is none of what is said.
    said = re.sub(rf"^\s*({re.escape(CONSTRAIN)}\s*{_TYPE.pattern}|json(?=\s*\{{))", "", said)
    return channel, said.replace(CHANNEL, "").replace(CONSTRAIN, "")
