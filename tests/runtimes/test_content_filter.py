"""Replies and chats under a content filter: what is held, what is blocked, what goes on."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from gptoss_onnx.runtimes.content_filter import (
    FAILED,
    UNCLEARED,
    ContentFilter,
    Kind,
    Review,
    prompt_texts,
    review,
)
from gptoss_onnx.runtimes.harmony import Message
from gptoss_onnx.runtimes.harmony_tools import Tool
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import Reply, read_reply
from gptoss_onnx.runtimes.stream_parser import Event
from gptoss_onnx.runtimes.tokenizer import Tokenizer
from tests.runtimes.replies import REPLIES, STOP_IDS, TOOLS
from tests.runtimes.scripted import ANSWER, CALL, TOOL, Script, encode, make, text
from tests.runtimes.test_reply import FOLLOWED
from tests.runtimes.test_stream_parser import DEMO, by_message, random_reply
from tests.runtimes.test_stream_parser import encode as encode_marks
from tests.runtimes.word_filter import WordFilter, WordReviewer

OPEN = "<|channel|>{}<|message|>"
NEXT = "<|end|><|start|>assistant"
THOUGHT = f"{OPEN.format('analysis')}Hm.{NEXT}"
ANY_CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO)


def cuts(tokenizer: Tokenizer, before: str, said: str, behind: str) -> Iterable[list[int]]:
    """The ids of all three, with `said` cut into tokens in every way that two cuts make."""
    for first in range(len(said) + 1):
        for second in range(first, len(said) + 1):
            parts = said[:first], said[first:second], said[second:]
            ids = [i for part in parts for i in tokenizer.encode(part)]
            yield encode_marks(tokenizer, before) + ids + encode_marks(tokenizer, behind)


def told(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events)


def everything(reply: Reply, events: Iterable[Event]) -> str:
    """All that comes out of a reply in any way."""
    heads = [f"{e.recipient} {e.content_type}" for e in events]
    called = [f"{call.name} {call.arguments}" for call in reply.calls]
    return " ".join(
        [told(events), reply.text, str(reply.said), str(reply.messages), *heads, *called]
    )


def same(reply: Reply, other: Reply) -> bool:
    said = ("said", "messages", "calls", "text", "finish_reason", "cut_in", "blocked")
    return all(getattr(reply, name) == getattr(other, name) for name in said)


@pytest.mark.parametrize(("word", "said"), [("bomb", "No bo, a bomb!"), ("炸弹", "炸了，炸弹在此")])
@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (OPEN.format("analysis"), NEXT),
        (THOUGHT + OPEN.format("commentary"), "<|end|>"),
        (THOUGHT + OPEN.format("final"), "<|return|>"),
        (THOUGHT + ANY_CALL, "<|call|>"),
    ],
)
def test_a_blocked_text_never_comes_out_wherever_it_is_cut(
    tokenizer: Tokenizer, word: str, said: str, before: str, behind: str
) -> None:
    clear = said[: said.index(word)]
    for ids in cuts(tokenizer, before, said, behind):
        reply, events = Reply(tokenizer, content_filter=WordFilter(word)), []
        for place, token in enumerate(ids):
            events += reply.feed(token)
            so_far = tokenizer.decode(ids[: place + 1])
            assert (reply.blocked is None) == (word not in so_far), tokenizer.show(ids)
            assert word[:2] not in everything(reply, events).replace("No bo,", "")
        assert (reply.blocked, reply.finish_reason) == (f"no {word}", "content_filter")
        assert reply.finish("stop") == [] and reply.finish_reason == "content_filter"
        assert told(events).removeprefix("Hm.") == clear
        assert reply.calls == [] and not reply.complete
        assert reply.said[-1].content == clear


@pytest.mark.parametrize("said", ["a bo", "bom", "a bob!", ""])
def test_held_text_comes_out_with_the_end_of_its_message(tokenizer: Tokenizer, said: str) -> None:
    ids = encode_marks(tokenizer, OPEN.format("commentary") + said)
    reply, events = Reply(tokenizer, content_filter=WordFilter()), []
    for token in ids:
        events += reply.feed(token)
    assert told(events) == {"a bo": "a ", "bom": ""}.get(said, said)
    events += reply.feed(tokenizer.special("<|end|>"))  # before the next message
    assert told(events) == said and reply.blocked is None
    whole = read_reply(tokenizer, ids, "length", content_filter=WordFilter())
    assert [m.content for m in whole.said] == ([said] if said else [])


@pytest.mark.parametrize("name", [*REPLIES, *FOLLOWED])
def test_a_filter_that_clears_changes_nothing(tokenizer: Tokenizer, name: str) -> None:
    written = REPLIES[name][0] if name in REPLIES else FOLLOWED[name][0]
    ids = encode_marks(tokenizer, written)
    for held in ("bomb", "e", "我"):  # nothing to hold; much to hold, until it is no `e!`
        plain, filtered = (
            Reply(tokenizer, TOOLS, STOP_IDS, f) for f in (None, WordFilter(f"{held}\0"))
        )
        events = [e for token in ids for e in plain.feed(token)] + plain.finish("stop")
        passed = [e for token in ids for e in filtered.feed(token)] + filtered.finish("stop")
        assert by_message(passed) == by_message(events)
        empty = [m for m in plain.said if not m.content]
        assert same(plain, filtered) or empty
        assert filtered.said == [m for m in plain.said if m.content]


def test_random_replies_show_nothing_of_what_is_forbidden(tokenizer: Tokenizer) -> None:
    draw = random.Random(12)
    blocked = 0
    for _ in range(400):
        ids = random_reply(tokenizer, draw)
        events: list[Event] = []
        plain = read_reply(tokenizer, ids, "stop", TOOLS)
        # A piece of what it says, from within or over a message's end.
        whole = "\n\n".join(m.content for m in plain.said) or "x"
        start = draw.randrange(len(whole))
        word = whole[start : start + draw.randint(1, 6)]
        reply = Reply(tokenizer, TOOLS, content_filter=WordFilter(word))
        for token in ids:
            before = reply.blocked
            events += reply.feed(token)
            if reply.blocked and not before:
                ended = len(events)
        if not reply.blocked:
            ended = len(events)
            events += reply.finish("stop")
        by_kind: dict[str, list[str]] = {}
        for (_, kind, *_), said in by_message(events).items():
            by_kind.setdefault(kind, []).append(said)
        assert not any(word in "\n\n".join(texts) for texts in by_kind.values())
        assert not any(word in m.content for m in (*reply.said, *reply.messages))
        assert [m.content for m in reply.said] == list(by_message(events).values())
        if reply.blocked:
            blocked += 1
            assert reply.calls == [] and len(events) >= ended
            assert reply.finish("stop") == [] and reply.finish_reason == "content_filter"
        else:
            assert by_message(events) == by_message(
                [e for p in [Reply(tokenizer, TOOLS)] for t in ids for e in p.feed(t)]
                + read_rest(tokenizer, ids)
            )
    assert blocked > 100


def read_rest(tokenizer: Tokenizer, ids: list[int]) -> list[Event]:
    reply = Reply(tokenizer, TOOLS)
    for token in ids:
        reply.feed(token)
    return reply.finish("stop")


def test_a_word_over_two_messages_of_a_kind_is_seen(tokenizer: Tokenizer) -> None:
    final = OPEN.format("final")
    ids = encode_marks(tokenizer, f"{final}an a{NEXT}{THOUGHT}{final}b<|return|>")
    reply = read_reply(tokenizer, ids, "stop", content_filter=WordFilter("a\n\nb"))
    assert reply.blocked and reply.text == "an a"
    other = f"{final}an a{NEXT}{OPEN.format('commentary')}b<|return|>"
    reply = read_reply(
        tokenizer, encode_marks(tokenizer, other), "stop", content_filter=WordFilter("a\n\nb")
    )
    assert reply.blocked is None


@pytest.mark.parametrize(
    "written",
    [
        "<|channel|>commentary to=functions.bomb <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.f <|constrain|>bomb<|message|>{}<|call|>",
        "<|channel|>final <|constrain|>bomb<|message|>Hi<|return|>",
        "<|channel|>final <|constrain|>bomb<|message|><|return|>",
        "<|channel|>commentary functions.bomb json<|message|>{}<|call|>",
        "<|channel|>a bomb<|return|>",
        "a bomb<|return|>",
        '<|channel|>commentary to=functions.f json{"a": "bomb"}<|call|>',
    ],
)
def test_no_header_goes_around_it(tokenizer: Tokenizer, written: str) -> None:
    reply, events = Reply(tokenizer, content_filter=WordFilter()), []
    for token in encode_marks(tokenizer, written):
        events += reply.feed(token)
    events += reply.finish("stop")
    assert "bomb" not in everything(reply, events)
    assert reply.calls == []


def test_an_earlier_call_of_a_blocked_reply_is_not_made(tokenizer: Tokenizer) -> None:
    two = f'{ANY_CALL}{{}}{NEXT}{ANY_CALL}{{"a": "bomb"}}<|call|>'
    ids = encode_marks(tokenizer, two)
    assert len(read_reply(tokenizer, ids, "stop").calls) == 2
    reply = read_reply(tokenizer, ids, "stop", content_filter=WordFilter())
    assert reply.calls == [] and reply.messages == []
    assert [m.content for m in reply.said] == ["{}", '{"a": "']


class Forgetful(WordFilter):
    """Clears less than all at the end, and does not say why."""

    def begin(self, kind: Kind) -> WordReviewer:
        class Reviewer(WordReviewer):
            def finish(self) -> Review:
                return Review(1)

        return Reviewer(self.word, [])


def test_what_is_never_cleared_is_blocked(tokenizer: Tokenizer) -> None:
    content_filter: ContentFilter = Forgetful()
    ids = encode_marks(tokenizer, f"{OPEN.format('final')}Hi<|return|>")
    reply = read_reply(tokenizer, ids, "stop", content_filter=content_filter)
    assert (reply.blocked, reply.finish_reason) == (UNCLEARED, "content_filter")
    assert review(content_filter, "prompt", ["Hi"]) == UNCLEARED


def test_a_prompt_is_reviewed_whole() -> None:
    messages = [
        Message("user", "Hi"),
        Message("assistant", "{}", "commentary", "functions.f", "json"),
        Message("functions.f", "sun", "commentary", "assistant"),
        Message("user", "\ud83d\ude00 \ud83d"),
    ]
    tools = [Tool("weather", "Tells it.")]
    texts = prompt_texts(messages, "Be brief.", tools)
    assert [texts[0], *texts[2:]] == [
        "Be brief.",
        "Hi",
        "functions.f json\n{}",
        "functions.f assistant\nsun",
        "😀 \ufffd",
    ]
    assert "Tells it." in texts[1] and "weather" in texts[1]
    asked = WordFilter("brief.\n\n#")
    assert review(asked, "prompt", texts) == "no brief.\n\n#"
    assert asked.texts == [("prompt", ["\n\n".join(texts)])]
    assert (
        review(WordFilter(), "prompt", []) is None and review(WordFilter(), "final", ["a"]) is None
    )


@pytest.mark.parametrize("where", ["text", "instructions", "tools", "history"])
def test_a_blocked_prompt_is_not_answered(package: Package, says: Script, where: str) -> None:
    tools = [Tool("weather", "Tells of a bomb.")] if where == "tools" else []
    instructions = "Talk of a bomb." if where == "instructions" else None
    chat = make(package, content_filter=WordFilter(), instructions=instructions, tools=tools)
    says(ANSWER)
    if where == "history":  # replaced by its owner
        chat.messages = [Message("user", "Hi"), Message("assistant", "A bomb?", "final")]
    before = list(chat.messages)
    assert list(chat.send("A bomb" if where == "text" else "Hi")) == []
    assert (chat.finish_reason, chat.reply.blocked) == ("content_filter", "no bomb")
    assert chat.messages == before
    assert (chat.usage.prompt_tokens, chat.usage.new_tokens) == (0, 0)
    assert chat.session.length == 0 and not says.logits  # type: ignore[attr-defined]
    assert chat.reply.messages == [] and chat.tool_calls == []
    chat.instructions, chat.tools, chat.messages = None, (), []
    assert text(chat.send("Hi"))["final"] == "Grüße!"
    assert chat.finish_reason == "stop" and len(chat.messages) == 3


def test_each_text_of_a_chat_is_reviewed_once(package: Package, says: Script) -> None:
    asked = WordFilter()
    chat = make(package, content_filter=asked, instructions="Be brief.", tools=[TOOL])
    for reply in (CALL, ANSWER):
        says(reply)
        if chat.tool_calls:
            chat.add_tool_result("weather", "Sun.")
            list(chat.resume())
        else:
            list(chat.send("Hi"))
    prompts = ["".join(pieces) for kind, pieces in asked.texts if kind == "prompt"]
    assert [p.count("Hi") for p in prompts] == [1, 0]
    assert prompts[0].startswith("Be brief.\n\n# Tools")
    assert prompts[1] == "functions.weather assistant\nSun."
    chat.instructions = "Be long."
    says(ANSWER)
    list(chat.send("Ho"))
    assert "".join(asked.texts[-3][1]) == "Be long.\n\nHo"


def test_a_blocked_answer_stops_the_model(package: Package, says: Script) -> None:
    chat = make(package, content_filter=WordFilter())
    said = f"{THOUGHT}{OPEN.format('final')}Build a bomb"
    says(f"{said} so and so.<|return|>")
    events = list(chat.send("Hi"))
    assert text(events) == {"analysis": "Hm.", "final": "Build a "}
    assert chat.finish_reason == "content_filter"
    assert chat.usage.new_tokens == len(encode(package, said))
    assert chat.messages == [Message("user", "Hi"), Message("assistant", "Build a ", "final")]
    says(ANSWER)
    assert text(chat.send("And?"))["final"] == "Grüße!"


def test_a_call_that_is_blocked_cannot_be_answered(package: Package, says: Script) -> None:
    chat = make(package, content_filter=WordFilter("Ulm"), tools=[TOOL])
    says(CALL)
    assert text(chat.send("Weather?")) == {"analysis": "Ask.", "commentary": '{"city": "'}
    assert chat.tool_calls == [] and chat.messages == [Message("user", "Weather?")]
    chat = make(package, content_filter=WordFilter("storm"), tools=[TOOL])
    says(CALL)
    list(chat.send("Weather?"))
    chat.add_tool_result("weather", "A storm.")
    before = list(chat.messages)
    assert list(chat.resume()) == [] and chat.finish_reason == "content_filter"
    assert chat.messages == before


def test_a_listener_that_leaves_keeps_what_is_cleared(package: Package, says: Script) -> None:
    chat = make(package, content_filter=WordFilter("zz"))
    says(f"{OPEN.format('final')}abz<|return|>")
    events = chat.send("Hi")
    assert next(events).text == "a"
    events.close()  # type: ignore[attr-defined]
    assert chat.finish_reason == "cancelled"
    assert chat.messages[1:] == [Message("assistant", "a", "final")]


class Broken(WordFilter):
    def begin(self, kind: Kind) -> WordReviewer:
        if kind != "prompt":
            raise OSError("the list is gone")
        return super().begin(kind)


def test_a_filter_that_fails_lets_nothing_out(package: Package, says: Script) -> None:
    chat = make(package, content_filter=Broken())
    says(ANSWER)
    heard: list[Event] = []
    with pytest.raises(OSError, match="gone"):
        heard.extend(chat.send("Hi"))
    assert heard == [] and chat.messages == [] and chat.reply.said == []


class FailsOnce(WordFilter):
    failed = False

    def begin(self, kind: Kind) -> WordReviewer:
        if not self.failed:
            self.failed = True
            raise OSError("locked")
        return super().begin(kind)


def test_nothing_comes_behind_a_failure(tokenizer: Tokenizer) -> None:
    reply = Reply(tokenizer, content_filter=FailsOnce())
    ids = encode_marks(tokenizer, f"{OPEN.format('final')}Hi you<|return|>")
    for token in ids[:3]:
        reply.feed(token)
    with pytest.raises(OSError, match="locked"):
        [reply.feed(token) for token in ids[3:]]
    assert [e for token in ids[4:] for e in reply.feed(token)] == [] == reply.finish("stop")
    assert (reply.blocked, reply.finish_reason) == (FAILED, "content_filter")
    assert reply.said == [] and reply.text == ""
