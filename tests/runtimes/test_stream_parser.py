"""Whatever a model writes is read: in the format as OpenAI's parser reads it, out of it as data."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.runtimes.harmony import Harmony, Message
from gptoss_onnx.runtimes.stream_parser import Event, StreamParser
from gptoss_onnx.runtimes.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "demo"
CALL = Message(
    "assistant", '{"city":"巴黎"}', "commentary", "functions.weather", "<|constrain|>json"
)
TOOLS = ("get_weather", "files.read")
LONG = "words without a header " * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO)


def encode(tokenizer: Tokenizer, text: str, *, by_byte: bool = False) -> list[int]:
    """`text` with its special tokens as such; `by_byte`: every character in as many as it has."""
    ids: list[int] = []
    for piece in re.split(r"(<\|\w+\|>)", text):
        if tokenizer.has_special(piece):
            ids.append(tokenizer.special(piece))
        elif by_byte:
            ids += [_byte_ids(tokenizer)[byte] for byte in piece.encode()]
        else:
            ids += tokenizer.encode(piece)
    return ids


@functools.cache
def _byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    pieces = {tokenizer.token_bytes(token): token for token in range(4096)}
    return {byte: pieces[bytes([byte])] for byte in range(256)}


def parse(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[Message], list[Event]]:
    parser = StreamParser(tokenizer, TOOLS, STOP_IDS)
    events = [event for token in ids for event in parser.feed(token)]
    return parser.messages, events + parser.finish()


def reply(content: str, channel: str = "final", **fields: Any) -> Message:
    return Message("assistant", content, channel, **fields)


def call(arguments: str, name: str = "functions.f", **fields: Any) -> Message:
    return reply(arguments, "commentary", recipient=name, **fields)


STOP_IDS = {4000, 4087}  # a package's own: any token, and <|startoftext|>
JSON = {"content_type": "<|constrain|>json"}
FINAL = "<|start|>assistant<|channel|>final<|message|>Hi<|return|>"
# What follows `<|start|>assistant`, and what it means.
REPLIES: dict[str, tuple[str, list[Message]]] = {
    "nothing": ("", []),
    "answer": ("<|channel|>final<|message|>Hi 你好🎉<|return|>", [reply("Hi 你好🎉")]),
    "reasoned answer": (
        f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}",
        [reply("Hm.", "analysis"), reply("Hi")],
    ),
    "cut off": ("<|channel|>final<|message|>Hi", [reply("Hi")]),
    "cut off behind a message": (
        "<|channel|>final<|message|>Hi<|end|><|start|>assistant",
        [reply("Hi")],
    ),
    "a stop of the package's own": ("<|channel|>final<|message|>Hi<|startoftext|>", [reply("Hi")]),
    "its stop behind text in the channel": (
        "<|channel|>Hi there<|startoftext|>",
        [reply("Hi there")],
    ),
    # Calls.
    "recipient in the role": (
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        [call("{}", recipient_in_role=True, **JSON)],
    ),
    "recipient in the channel": (
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        [call("{}", **JSON)],
    ),
    "no space before the type": (
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>",
        [call("{}", **JSON)],
    ),
    "space behind the type's mark": (
        "<|channel|>commentary to=functions.f <|constrain|> json<|message|>{}<|call|>",
        [call("{}", **JSON)],
    ),
    "plain type": (
        "<|channel|>commentary to=functions.f json<|message|>{}<|call|>",
        [call("{}", content_type="json")],
    ),
    "recipient before the channel's name": (
        "<|channel|> to=functions.f commentary<|message|>{}<|call|>",
        [call("{}")],
    ),
    "call without a channel": (
        " to=functions.f<|message|>{}<|call|>",
        [call("{}", recipient_in_role=True)],
    ),
    "call on an unknown channel": (
        "<|channel|>tools to=functions.f<|message|>{}<|call|>",
        [call("{}")],
    ),
    "call on the answer's channel": (
        "<|channel|>final to=functions.f<|message|>{}<|call|>",
        [call("{}")],
    ),
    "call on the reasoning's channel": (
        "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        [reply("print(1)", "analysis", recipient="python", content_type="code")],
    ),
    "two calls": (
        "<|channel|>commentary to=functions.f<|message|>{}<|end|>"
        "<|start|>assistant<|channel|>commentary to=get_weather"
        '<|message|>{"a": 1}<|call|>',
        [call("{}"), call('{"a": 1}', "get_weather")],
    ),
    "preamble, then a call": (
        "<|channel|>commentary<|message|>Let me check.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f"
        "<|message|>{}<|call|>",
        [reply("Let me check.", "commentary"), call("{}")],
    ),
    "white space around arguments": (
        "<|channel|>commentary to=functions.f<|message|> \n{} <|call|>",
        [call(" \n{} ")],
    ),
    "arguments that are no JSON": (
        "<|channel|>commentary to=functions.f<|message|>city=Ulm<|call|>",
        [call("city=Ulm")],
    ),
    "marks in a recipient": (
        "to=functions.f<|end|><|channel|>commentary<|message|>{}<|call|>",
        [reply("{}", "commentary")],
    ),
    "no arguments": ("<|channel|>commentary to=functions.f<|message|><|call|>", []),
    "blank arguments": ("<|channel|>commentary to=functions.f<|message|> \n<|call|>", []),
    # Meant for nobody else.
    "to the user": ("<|channel|>final to=user<|message|>Hi<|return|>", [reply("Hi")]),
    "to all": ("<|channel|>commentary to=all<|message|>Hi<|end|>", [reply("Hi", "commentary")]),
    "empty recipient": ("<|channel|>final to=<|message|>Hi<|end|>", [reply("Hi")]),
    # Without `to=`.
    "function without to=": (
        "<|channel|>commentary functions.f <|constrain|>json<|message|>{}<|call|>",
        [call("{}", **JSON)],
    ),
    "known tool without to=": (
        "<|channel|>commentary get_weather json<|message|>{}<|call|>",
        [call("{}", "get_weather", content_type="json")],
    ),
    "known tool in its namespace": (
        "<|channel|>commentary functions.files.read<|message|>{}<|call|>",
        [call("{}", "functions.files.read")],
    ),
    "known tool with a dot": (
        "<|channel|>commentary files.read<|message|>{}<|call|>",
        [call("{}", "files.read")],
    ),
    "tool in place of the channel": (
        "<|channel|>get_weather <|constrain|>json<|message|>{}<|call|>",
        [call("{}", "get_weather", **JSON)],
    ),
    "tool in the role, without to=": (
        " functions.f<|channel|>commentary<|message|>{}<|call|>",
        [call("{}")],
    ),
    "tool as the role": (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>functions.f<|channel|>commentary<|message|>{}<|call|>",
        [reply("Hm", "analysis"), call("{}")],
    ),
    "unknown tool without to=": (
        "<|channel|>commentary other json<|message|>{}<|call|>",
        [reply("{}", "commentary")],
    ),
    "function without to=, no call": (
        "<|channel|>commentary functions.f is what I use<|message|>Hi<|end|>",
        [reply("Hi", "commentary")],
    ),
    "tool in place of the channel, no call": (
        "<|channel|>get_weather<|message|>Hi<|return|>",
        [reply("Hi")],
    ),
    "function without to=, no arguments": (
        "<|channel|>commentary functions.f<|message|><|call|>",
        [],
    ),
    "JSON answer": (
        "<|channel|>final <|constrain|>json<|message|>{}<|return|>",
        [reply("{}", **JSON)],
    ),
    "JSON commentary": (
        "<|channel|>commentary json<|message|>{}<|call|>",
        [reply("{}", "commentary", content_type="json")],
    ),
    # Without `<|message|>`.
    "arguments in the header": (
        '<|channel|>commentary to=functions.f <|constrain|>json{"c": 1}<|call|>',
        [call('{"c": 1}', **JSON)],
    ),
    "arguments stuck to the recipient": (
        '<|channel|>commentary to=functions.f{"c": {}}<|call|>',
        [call('{"c": {}}')],
    ),
    "arguments in the role": (
        ' to=functions.f {"c": 1}<|call|>',
        [call('{"c": 1}', recipient_in_role=True)],
    ),
    "long arguments in the header": (
        f'<|channel|>commentary to=functions.f json{{"c": "{LONG}"}}<|call|>',
        [call(f'{{"c": "{LONG}"}}', content_type="json")],
    ),
    "arguments in the header, without to=": (
        '<|channel|>commentary get_weather <|constrain|>json{"c": 1}<|call|>',
        [call('{"c": 1}', "get_weather", **JSON)],
    ),
    "long arguments in the header, without to=": (
        f'<|channel|>commentary functions.f{{"c": "{LONG}"}}<|call|>',
        [call(f'{{"c": "{LONG}"}}')],
    ),
    "JSON answer without its mark": (
        '<|channel|>final json{"c": 1}<|return|>',
        [reply('{"c": 1}')],
    ),
    "JSON answer without its mark, of a type": (
        '<|channel|>final <|constrain|>json {"c": 1}<|return|>',
        [reply(' {"c": 1}')],
    ),
    "braces in an answer without its mark": (
        "<|channel|>final functions.f {takes this}<|return|>",
        [reply(" functions.f {takes this}")],
    ),
    "words before arguments in the header": (
        '<|channel|>commentary to=functions.f city={"c": 1}<|call|>',
        [],
    ),
    "code in the header": ("<|channel|>analysis to=python x = {1}<|call|>", []),
    "long code in the header": (f"<|channel|>analysis to=python {LONG}<|call|>", []),
    "call without a message": (" to=functions.f<|channel|>commentary<|call|>", []),
    "only a recipient": ("to=functions.f<|call|>", []),
    "nothing but a channel": ("<|channel|>analysis<|end|>", []),
    "cut off in the channel": ("<|message|>a<|end|><|start|>assistant<|channel|>", [reply("a")]),
    "answer without its mark": ("<|channel|>final Hi there<|return|>", [reply(" Hi there")]),
    "answer in the channel": ("<|channel|>Hi there<|return|>", [reply("Hi there")]),
    "word in the channel": ("<|channel|>Hi<|return|>", [reply("Hi")]),
    "text in the channel, then an answer": (
        f"<|channel|>We need to answer.<|end|>{FINAL}",
        [reply("We need to answer.", "analysis"), reply("Hi")],
    ),
    "text in the channel, then an answer without an end": (
        f"<|channel|>We need the final answer.{FINAL}",
        [reply("We need the final answer.", "analysis"), reply("Hi")],
    ),
    "long text in the channel, then an answer": (
        f"<|channel|>{LONG}<|end|>{FINAL}",
        [reply(LONG, "analysis"), reply("Hi")],
    ),
    "text in the channel, with its mark": (
        f"<|channel|>We need to answer.<|message|>Hm<|end|>{FINAL}",
        [reply("Hm", "analysis"), reply("Hi")],
    ),
    "text without a channel, then an answer": (
        f"We need to answer.<|end|>{FINAL}",
        [reply("We need to answer.", "analysis"), reply("Hi")],
    ),
    "text in the channel behind an answer": (
        "<|channel|>final<|message|>Hi<|end|><|start|>assistant<|channel|>That was it.<|return|>",
        [reply("Hi"), reply("That was it.", "analysis")],
    ),
    "text in the channel, then a call": (
        "<|channel|>We need a tool.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        [reply("We need a tool.", "analysis"), call("{}")],
    ),
    "text in the channel, cut off": ("<|channel|>We need to", [reply("We need to", "analysis")]),
    "text in the channel that ends as a call": (
        "<|channel|>We need to<|call|>",
        [reply("We need to", "analysis")],
    ),
    # Channels.
    "no channel": ("<|message|>Hi<|return|>", [reply("Hi")]),
    "empty channel": ("<|channel|><|message|>Hi<|return|>", [reply("Hi")]),
    "unknown channel": ("<|channel|>musing<|message|>Hm<|end|>", [reply("Hm", "analysis")]),
    "unknown channel at the end": ("<|channel|>musing<|message|>Hi<|return|>", [reply("Hi")]),
    "unknown channel behind an answer": (
        "<|channel|>final<|message|>Hi<|end|>"
        "<|start|>assistant<|channel|>musing<|message|>Hm<|return|>",
        [reply("Hi"), reply("Hm", "analysis")],
    ),
    "unknown channel, cut off": ("<|channel|>musing<|message|>Hm", [reply("Hm", "analysis")]),
    "a channel's name in an unknown one's text, then an answer": (
        f"<|channel|>We need final<|message|>x<|end|>{FINAL}",
        [reply("x", "analysis"), reply("Hi")],
    ),
    "a channel's name behind an unknown one, then an answer": (
        f"<|channel|>musing commentary<|message|>x<|end|>{FINAL}",
        [reply("x", "analysis"), reply("Hi")],
    ),
    "a channel's name behind words, without its mark": (
        f" and so analysis<|message|>x<|end|>{FINAL}",
        [reply("x", "analysis"), reply("Hi")],
    ),
    "two channels": (
        "<|channel|>analysis<|channel|>final<|message|>Hi<|end|>",
        [reply("Hi", "analysis")],
    ),
    "words behind the channel": (
        "<|channel|>final I will answer<|message|>Hi<|return|>",
        [reply("Hi")],
    ),
    "two types": (
        "<|channel|>final <|constrain|>json <|constrain|>text<|message|>Hi<|return|>",
        [reply("Hi", **JSON)],
    ),
    "channel without its mark": ("analysis<|message|>Hm<|end|>", [reply("Hm", "analysis")]),
    "role and channel in one": (
        "<|message|>a<|end|><|start|>assistantanalysis<|message|>Hm<|end|>",
        [reply("a"), reply("Hm", "analysis")],
    ),
    "channel amid content": (
        "<|channel|>analysis<|message|>Hm<|channel|>final<|message|>Hi<|return|>",
        [reply("Hm", "analysis"), reply("Hi")],
    ),
    "start amid content": (
        "<|channel|>analysis<|message|>Hm<|start|>assistant<|channel|>final<|message|>Hi",
        [reply("Hm", "analysis"), reply("Hi")],
    ),
    "no start": (
        "<|channel|>analysis<|message|>Hm<|end|><|channel|>final<|message|>Hi<|return|>",
        [reply("Hm", "analysis"), reply("Hi")],
    ),
    "message and type amid content": (
        "<|channel|>final<|message|>a<|message|>b<|constrain|>c<|return|>",
        [reply("abc")],
    ),
    # In another's name.
    "another's odd channel amid content": (
        "<|message|>a<|start|>functions.f<|channel|>commentary<|message|>b<|channel|>odd<|message|>c",
        [reply("a"), Message("functions.f", "b", "commentary"), Message("functions.f", "c")],
    ),
    "another's role": (
        "<|message|>a<|end|><|start|>functions.f to=assistant<|channel|>commentary<|message|>1",
        [reply("a"), Message("functions.f", "1", "commentary", "assistant")],
    ),
    "the user's role": (
        "<|message|>a<|end|><|start|>user<|channel|>final<|message|>Me<|end|><|return|>",
        [reply("a"), Message("user", "Me", "final")],
    ),
    "the user's role without a mark": (
        "<|message|>a<|end|><|start|>user What else?<|end|>",
        [reply("a")],
    ),
    "the user's role, long": (f"<|message|>a<|end|><|start|>user {LONG}<|end|>", [reply("a")]),
    # No header.
    "no header at all": ("Just text.<|return|>", [reply("Just text.")]),
    "no header, cut off": ("Just text.", [reply("Just text.")]),
    "no header behind a start": (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant Hi.<|return|>",
        [reply("Hm", "analysis"), reply(" Hi.")],
    ),
    "a long text without header": (LONG, [reply(LONG)]),
    "reasoning whose header never ends": (
        f"<|channel|>analysis {LONG}<|end|>",
        [reply(f" {LONG}", "analysis")],
    ),
    "a mark in a long text without header": (
        f"{LONG[:99]}<|constrain|>{LONG}",
        [reply(LONG[:99] + LONG)],
    ),
    "type without a channel": ("<|channel|><|constrain|>json<|message|>{}", [reply("{}", **JSON)]),
    "type without a role": (
        "<|message|>a<|end|><|channel|>final json<|message|>{}",
        [reply("a"), reply("{}", content_type="json")],
    ),
    "role twice": ("assistant<|channel|>final<|message|>Hi", [reply("Hi")]),
    "stops only": ("<|end|><|return|><|call|><|start|><|end|><|endoftext|>", []),
    "spaces only": (" \n<|end|>", []),
}


def own(messages: Iterable[Message]) -> list[Message]:
    return [message for message in messages if message.role == "assistant"]


def kind(message: Message) -> str:
    return "call" if message.is_call else str(message.channel)


def by_message(events: Iterable[Event]) -> dict[tuple[int, str, str | None, str | None], str]:
    said: dict[tuple[int, str, str | None, str | None], str] = {}
    for event in events:
        key = event.message, event.kind, event.recipient, event.content_type
        said[key] = said.get(key, "") + event.text
    return said


def check(messages: list[Message], events: list[Event]) -> None:
    """Nothing is said that no message holds, nothing is held that was not said, all is in order."""
    assert all(event.text for event in events)
    expected = {
        (place, kind(m), m.recipient, m.content_type): m.content
        for place, m in enumerate(own(messages))
        if m.content
    }
    assert by_message(events) == expected
    places = [event.message for event in events]
    assert places == sorted(places)
    for message in own(messages):
        assert kind(message) in ("analysis", "commentary", "final", "call")
        assert not message.is_call or message.content.strip()
        for name in (message.recipient, message.content_type):
            assert "<|" not in (name or "").removeprefix("<|constrain|>")


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("by_byte", [False, True])
def test_reads(tokenizer: Tokenizer, name: str, by_byte: bool) -> None:
    text, messages = REPLIES[name]
    found, events = parse(tokenizer, encode(tokenizer, text, by_byte=by_byte))
    assert found == messages
    check(found, events)


def test_marks_spelled_in_letters_make_a_header_too(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|channel|>analysis<|message|>Hm <|end|>")
    assert parse(tokenizer, ids)[0] == [reply("Hm <|end|>", "analysis")]


def test_a_stop_of_the_packages_own_is_no_text(tokenizer: Tokenizer) -> None:
    ids = [*encode(tokenizer, "<|channel|>final<|message|>Hi"), 4000]
    assert parse(tokenizer, ids)[0] == [reply("Hi")]


def test_text_comes_as_soon_as_it_is_whole(tokenizer: Tokenizer) -> None:
    parser = StreamParser(tokenizer)
    for token in encode(tokenizer, "<|channel|>final<|message|>"):
        assert parser.feed(token) == []
    ids = encode(tokenizer, "a🎉", by_byte=True)
    pieces = [parser.feed(token) for token in ids]
    assert pieces == [[Event("final", "a")], [], [], [], [Event("final", "🎉")]]
    assert parser.messages == []


def test_a_header_that_never_ends_is_not_held_back(tokenizer: Tokenizer) -> None:
    parser = StreamParser(tokenizer)
    said = [event.text for token in encode(tokenizer, LONG) for event in parser.feed(token)]
    assert "".join(said) == LONG
    assert len(said) > 10  # the first 256 characters at once, the rest as it comes


def test_half_a_character_is_flushed_with_its_message(tokenizer: Tokenizer) -> None:
    half = encode(tokenizer, "🎉", by_byte=True)[:2]
    ids = encode(tokenizer, "<|channel|>analysis<|message|>") + half
    ids += encode(tokenizer, "<|end|><|start|>assistant<|channel|>final<|message|>") + half
    messages, events = parse(tokenizer, ids)
    assert messages == [reply("\ufffd", "analysis"), reply("\ufffd")]
    assert events == [Event("analysis", "\ufffd"), Event("final", "\ufffd", 1)]


WORDS = (
    "assistant user to=functions.f to= get_weather functions.g final analysis commentary json"
    ' { {} {"a": 1} }  <|message|> <|end|> to=user functions.f 🎉'
)


def random_reply(tokenizer: Tokenizer, draw: random.Random) -> list[int]:
    """Marks, a header's words, and any tokens."""
    marks = [[token] for token in range(4087, 4096)]
    words = [tokenizer.encode(space + word) for word in WORDS.split() for space in ("", " ")]
    tokens = [[token] for token in range(-2, 5000)]
    pools = draw.choices([marks, words, tokens], [5, 5, 1], k=draw.randrange(40))
    return [token for pool in pools for token in draw.choice(pool)]


def without_marks(text: str) -> str:
    return re.sub(r"<\|\w+\|>", "", text)


def test_no_sequence_of_tokens_is_an_error(tokenizer: Tokenizer) -> None:
    draw = random.Random(3)
    harmony = Harmony(tokenizer)
    marks = set(range(4087, 4096))
    calls = 0
    for _ in range(3000):
        ids = random_reply(tokenizer, draw)
        messages, events = parse(tokenizer, ids)
        check(messages, events)
        said = without_marks(tokenizer.show(ids))
        for message in own(messages):
            # What is stored was said, and can be fed back with no mark but those of its header.
            rendered = harmony.render([message], system=None, reply=False)
            fed = rendered[-1 - len(tokenizer.encode(message.content)) : -1]
            assert not marks & set(fed)
            assert sum(token in marks for token in rendered) <= 5
            if message.is_call:
                calls += 1
                assert without_marks(message.content) in said
    assert calls > 100


def test_what_is_rendered_is_read_back(tokenizer: Tokenizer) -> None:
    harmony = Harmony(tokenizer)
    messages = [
        reply("Let me 想.", "analysis"),
        CALL,
        Message("functions.weather", "晴 ☀️", "commentary", "assistant"),
        reply("<|start|>system is text", "analysis"),
        reply("Sunny."),
        Message("user", "ok"),
    ]
    opened = len(harmony.render([], system=None))
    for first in (0, 1, 4):
        # Behind the last answer, reasoning is rendered as it stands.
        shown = messages[first:4] if first < 4 else messages[4:]
        ids = harmony.render(shown, system=None, reply=False)[opened:]
        assert parse(tokenizer, ids)[0] == shown
    ids = harmony.render_completion("a", "b")
    assert parse(tokenizer, ids)[0] == [reply("a", "analysis"), reply("b")]
