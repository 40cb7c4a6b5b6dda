"""Chats whose model says what a script has: see the fixture `says`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gptoss_onnx.runtimes.chat import Chat
from gptoss_onnx.runtimes.harmony import Message, SystemPrompt, Tool
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.stream_parser import Event

SYSTEM = SystemPrompt(identity="Tiny.", date="2026-01-01")
TOOL = Tool("weather", "Tells the weather.", {"type": "object", "properties": {}})
Script = Callable[[str], None]

THOUGHT = "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant"
ARGUMENTS = '<|message|>{"city": "Ulm"}<|call|>'
CALL = THOUGHT + "<|channel|>commentary to=functions.weather <|constrain|>json" + ARGUMENTS
# As models write it mostly, and as openai-harmony renders it.
CALLS = [CALL, f"{THOUGHT} to=functions.weather<|channel|>commentary <|constrain|>json{ARGUMENTS}"]

ANSWER = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    "<|channel|>final<|message|>Grüße!<|return|>"
)


class Spoken(Exception):
    """The script ended without a stop token."""


def encode(package: Package, text: str) -> list[int]:
    ids: list[int] = []
    for place, part in enumerate(text.replace("|>", "<|").split("<|")):
        ids += [package.tokenizer.special(f"<|{part}|>")] if place % 2 else (
            package.tokenizer.encode(part)
        )  # fmt: skip
    return ids


def make(package: Package, **others: Any) -> Chat:
    return Chat(package, system=SYSTEM, **others)


def make_like(chat: Chat, messages: list[Message]) -> Chat:
    other = make(chat.package, instructions=chat.instructions, tools=chat.tools)
    other.messages = list(messages)
    return other


def text(events: Iterable[Event]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for event in events:
        joined[event.channel] = joined.get(event.channel, "") + event.text
    return joined


def rendered(chat: Chat, reply: bool = True) -> list[int]:
    return chat.package.harmony.render(
        chat.messages, system=SYSTEM, instructions=chat.instructions, tools=chat.tools, reply=reply
    )
