"""Whatever a model writes is read: in the format as OpenAI's parser reads it, out of it as data."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from gptoss_onnx.runtimes.harmony import Harmony, Message
from gptoss_onnx.runtimes.stream_parser import Event, StreamParser
from gptoss_onnx.runtimes.tokenizer import Tokenizer
from tests.runtimes.replies import CALL, LONG, REPLIES, STOP_IDS, TOOLS, reply

DEMO = Path(__file__).parents[2] / "demo"


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
