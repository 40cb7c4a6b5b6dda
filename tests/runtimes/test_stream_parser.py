"""Whatever a model writes is read: in the format as OpenAI's parser reads it, out of it as data."""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path

import pytest

from gptoss_onnx.runtimes.harmony import Event, Harmony, Message, StreamParser
from gptoss_onnx.runtimes.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "demo"
CALL = Message(
    "assistant", '{"city":"巴黎"}', "commentary", "functions.weather", "<|constrain|>json"
)
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
    parser = StreamParser(tokenizer)
    events = [event for token in ids for event in parser.feed(token)]
    return parser.messages, events + parser.finish()


def reply(content: str, channel: str = "final", **fields: str) -> Message:
    return Message("assistant", content, channel, **fields)


# What follows `<|start|>assistant`, and what it means.
REPLIES: dict[str, tuple[str, list[Message]]] = {
    "nothing": ("", []),
    "answer": ("<|channel|>final<|message|>Hi 你好🎉<|return|>", [reply("Hi 你好🎉")]),
    "reasoned answer": (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final"
        "<|message|>Hi<|return|>",
        [reply("Hm.", "analysis"), reply("Hi")],
    ),
    "cut off": ("<|channel|>final<|message|>Hi", [reply("Hi")]),
    "cut off behind a message": (
        "<|channel|>final<|message|>Hi<|end|><|start|>assistant",
        [reply("Hi")],
    ),
    "recipient in the role": (
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        [reply("{}", "commentary", recipient="functions.f", content_type="<|constrain|>json")],
    ),
    "recipient in the channel": (
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        [reply("{}", "commentary", recipient="functions.f", content_type="<|constrain|>json")],
    ),
    "no space before the type": (
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>",
        [reply("{}", "commentary", recipient="functions.f", content_type="<|constrain|>json")],
    ),
    "plain type": (
        "<|channel|>commentary to=functions.f json<|message|>{}<|call|>",
        [reply("{}", "commentary", recipient="functions.f", content_type="json")],
    ),
    "recipient before the channel's name": (
        "<|channel|> to=functions.f commentary<|message|>{}<|call|>",
        [reply("{}", "commentary", recipient="functions.f")],
    ),
    "call without a channel": (
        " to=functions.f<|message|>{}<|call|>",
        [reply("{}", "commentary", recipient="functions.f")],
    ),
    "call without a message": (
        " to=functions.f<|channel|>commentary<|call|>",
        [reply("", "commentary", recipient="functions.f")],
    ),
    "nothing but a channel": ("<|channel|>analysis<|end|>", [reply("", "analysis")]),
    "cut off in the channel": (
        "<|message|>a<|end|><|start|>assistant<|channel|>",
        [reply("a"), reply("")],
    ),
    "answer without its mark": ("<|channel|>final Hi there<|return|>", [reply(" Hi there")]),
    "answer in the channel": ("<|channel|>Hi there<|return|>", [reply("Hi there")]),
    "only a recipient": (
        "to=functions.f<|call|>",
        [reply("", "commentary", recipient="functions.f")],
    ),
    "empty recipient": ("<|channel|>final to=<|message|>Hi<|end|>", [reply("Hi")]),
    "no channel": ("<|message|>Hi<|return|>", [reply("Hi")]),
    "empty channel": ("<|channel|><|message|>Hi<|return|>", [reply("Hi")]),
    "unknown channel": ("<|channel|>musing<|message|>Hi<|end|>", [reply("Hi", "musing")]),
    "two channels": (
        "<|channel|>analysis<|channel|>final<|message|>Hi<|end|>",
        [reply("Hi", "analysis", content_type="final")],
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
    "another's odd channel amid content": (
        "<|message|>a<|start|>functions.f<|channel|>commentary<|message|>b<|channel|>odd<|message|>c",
        [
            reply("a"),
            Message("functions.f", "b", "commentary"),
            Message("functions.f", "c", "odd"),
        ],
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
    "another's role": (
        "<|message|>a<|end|><|start|>functions.f to=assistant<|channel|>commentary<|message|>1",
        [reply("a"), Message("functions.f", "1", "commentary", "assistant")],
    ),
    "no header at all": ("Just text.<|return|>", [reply("Just text.")]),
    "no header, cut off": ("Just text.", [reply("Just text.")]),
    "a long text without header": (LONG, [reply(LONG)]),
    "reasoning whose header never ends": (
        f"<|channel|>analysis {LONG}<|end|>",
        [reply(f" {LONG}", "analysis")],
    ),
    "marks in a long text without header": (
        f"{LONG[:99]}<|constrain|><|channel|>{LONG}",
        [reply(LONG[:99] + LONG)],
    ),
    "space behind the type's mark": (
        "<|channel|>commentary to=functions.f <|constrain|> json<|message|>{}<|call|>",
        [reply("{}", "commentary", recipient="functions.f", content_type="<|constrain|>json")],
    ),
    "type without a channel": (
        "<|channel|><|constrain|>json<|message|>{}",
        [reply("{}", content_type="<|constrain|>json")],
    ),
    "type without a role": (
        "<|message|>a<|end|><|channel|>final json<|message|>{}",
        [reply("a"), reply("{}", content_type="json")],
    ),
    "role twice": ("assistant<|channel|>final<|message|>Hi", [reply("Hi")]),
    "stops only": ("<|end|><|return|><|call|><|start|><|end|><|endoftext|>", []),
    "spaces only": (" \n<|end|>", []),
}


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("by_byte", [False, True])
def test_reads(tokenizer: Tokenizer, name: str, by_byte: bool) -> None:
    text, messages = REPLIES[name]
    found, events = parse(tokenizer, encode(tokenizer, text, by_byte=by_byte))
    assert found == messages
    assert "".join(event.text for event in events) == "".join(m.content for m in messages)
    channels = [m.channel for m in messages if m.content]
    assert list(dict.fromkeys(event.channel for event in events)) == list(dict.fromkeys(channels))


def test_marks_spelled_in_letters_make_a_header_too(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|channel|>analysis<|message|>Hm <|end|>")
    assert parse(tokenizer, ids)[0] == [reply("Hm <|end|>", "analysis")]


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
    assert events == [Event("analysis", "\ufffd"), Event("final", "\ufffd")]


def test_no_sequence_of_tokens_is_an_error(tokenizer: Tokenizer) -> None:
    draw = random.Random(3)
    marks = list(range(4087, 4096))
    names = encode(tokenizer, "assistant user to=functions.f analysis final commentary json 🎉")
    for _ in range(1000):
        pools = draw.choices([marks, names, range(-2, 5000)], k=draw.randrange(60))
        ids = [draw.choice(pool) for pool in pools]
        messages, events = parse(tokenizer, ids)
        # Nothing is said that no message holds, and nothing is held that was not said.
        assert "".join(m.content for m in messages) == "".join(e.text for e in events)
        assert all(event.text for event in events)
        said = [(m.channel or "final") for m in messages if m.content]
        assert set(said) == {event.channel for event in events}


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
