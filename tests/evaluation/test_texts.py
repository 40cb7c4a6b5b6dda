"""Texts: which tokens count, and what is refused, a line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.evaluation.texts import Passage, read_conversations, read_passages
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Harmony

CONTEXT = 4096
USER = {"role": "user", "content": "Hello"}


@pytest.fixture
def read(tmp_path: Path, harmony: Harmony) -> Any:
    def get(*rows: Any, context: int = CONTEXT, name: str = "text.jsonl") -> list[Passage]:
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
        path = tmp_path / name
        path.write_text("\n".join(lines), encoding="utf-8")
        return read_passages(path, harmony, context)

    return get


def spoken(passage: Passage, harmony: Harmony) -> list[tuple[str, str]]:
    show = harmony.tokenizer.show
    return [(s.channel, show(list(passage.ids[s.start : s.stop]))) for s in passage.spans]


def test_only_what_the_assistant_says_counts(read: Any, harmony: Harmony) -> None:
    reply = {"role": "assistant", "analysis": "A greeting.", "content": "Hi"}
    (passage,) = read({"messages": [USER, reply], "language": "en"})
    assert passage.language == "en"
    assert spoken(passage, harmony) == [
        ("analysis", "<|channel|>analysis<|message|>A greeting.<|end|>"),
        ("final", "<|start|>assistant<|channel|>final<|message|>Hi<|return|>"),
    ]
    assert passage.tokens == sum(s.stop - s.start for s in passage.spans)


def test_earlier_reasoning_is_not_shown(read: Any, harmony: Harmony) -> None:
    replies = [{"role": "assistant", "analysis": f"Why {n}", "content": f"No {n}"} for n in "ab"]
    (passage,) = read({"messages": [USER, replies[0], USER, replies[1]]})
    assert spoken(passage, harmony) == [
        ("final", "<|channel|>final<|message|>No a<|end|>"),
        ("analysis", "<|channel|>analysis<|message|>Why b<|end|>"),
        ("final", "<|start|>assistant<|channel|>final<|message|>No b<|return|>"),
    ]
    assert "Why a" not in harmony.tokenizer.show(list(passage.ids))


def test_plain_text_is_cut_at_the_context(read: Any, harmony: Harmony) -> None:
    text = "Count every token of this text but the first of each piece. " * 5
    ids = harmony.tokenizer.encode(text)
    passages = read(text, context=16, name="text.txt")
    assert [token for passage in passages for token in passage.ids] == ids
    assert max(len(passage.ids) for passage in passages) == 16
    assert sum(p.tokens for p in passages) == len(ids) - len(passages)


def test_a_line_ends_at_a_newline_alone(read: Any) -> None:
    (passage,) = read({"text": "one\u2028line\x85of JSON"})
    assert passage.tokens


def test_a_line_is_found_by_its_number(read: Any) -> None:
    good = {"text": "fine"}
    for bad, said in (
        ("{", "line 3: is not JSON"),
        ({"words": 1}, 'line 3: has neither "messages" nor "text"'),
        ({"messages": [{"role": "user"}]}, "line 3: a message has no 'content'"),
        ({"messages": [{"role": "user", "content": 7}]}, "line 3: a message needs"),
        ({"messages": "hello"}, "line 3: a message needs"),
        ({"messages": [{**USER, "role": "assistant", "analysis": 3}]}, "line 3: a message needs"),
    ):
        with pytest.raises(UserError) as error:
            read(good, "", bad)
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_text_without_a_token_that_counts(read: Any) -> None:
    for rows, name in ((("",), "a.txt"), ((), "b.jsonl"), (({"messages": [USER]},), "c.jsonl")):
        with pytest.raises(UserError, match="holds no token to evaluate"):
            read(*rows, name=name)


def test_a_conversation_longer_than_the_context(read: Any) -> None:
    reply = {"role": "assistant", "content": "word " * 100}
    with pytest.raises(UserError, match=r"line 1: the conversation has \d+ tokens, the context 90"):
        read({"messages": [USER, reply]}, context=90)


def test_a_file_that_is_not_text(tmp_path: Path, harmony: Harmony) -> None:
    path = tmp_path / "image.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as UTF-8 text"):
        read_passages(path, harmony, CONTEXT)
    with pytest.raises(UserError, match="cannot be read"):
        list(read_conversations(tmp_path / "absent.jsonl"))


REPLY = {"role": "assistant", "content": "Join them."}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief."}, USER, REPLY],
        [{"role": "developer", "content": "Be brief."}, USER, REPLY],
        [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER, REPLY],
    ],
    ids=["system", "developer", "parts"],
)
def test_the_first_message_instructs_as_the_chat_template_has_it(
    read: Any, messages: list[dict[str, Any]]
) -> None:
    (expected,) = read({"messages": [USER, REPLY], "instructions": "Be brief."})
    (plain,) = read({"messages": [USER, REPLY]})
    (passage,) = read({"messages": messages})
    assert passage == expected != plain


def test_what_instructs_in_several_places_is_joined(read: Any) -> None:
    told = [{"role": role, "content": role} for role in ("system", "developer")]
    (expected,) = read({"messages": [USER, REPLY], "instructions": "first\n\nsystem\n\ndeveloper"})
    assert read({"messages": [*told, USER, REPLY], "instructions": "first"}) == [expected]


@pytest.mark.parametrize("key", ["thinking", "reasoning_content"])
def test_thinking_is_analysis(read: Any, key: str) -> None:
    (expected,) = read({"messages": [USER, {**REPLY, "analysis": "Two paths."}]})
    (passage,) = read({"messages": [USER, {**REPLY, key: "Two paths."}]})
    assert passage == expected
    assert [span.channel for span in passage.spans] == ["analysis", "final"]
    # As the template: of the last answer only.
    (early,) = read({"messages": [USER, {**REPLY, key: "Two paths."}, USER, REPLY]})
    assert [span.channel for span in early.spans] == ["final", "final"]


def test_conversations_come_with_their_instructions(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "system", "content": "x"}, USER, REPLY]}))
    ((_, messages, row),) = read_conversations(path)
    assert [message.role for message in messages] == ["user", "assistant"]
    assert row["instructions"] == "x"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [USER, {"role": "system", "content": "x"}, REPLY],
            "a system message after the first turn",
        ),
        ([USER, {**REPLY, "tool_calls": [{"name": "f"}]}], "tool calls are not read"),
        ([USER, {"role": "tool", "content": "4"}, REPLY], "tool calls are not read"),
        ([USER, {**REPLY, "analysis": "a", "thinking": "b"}], "two kinds of reasoning"),
        ([USER, {**REPLY, "thinking": 3}], "a message needs"),
        ([{"role": "system"}, USER, REPLY], "a message has no 'content'"),
        ([{"role": "user", "content": [{"type": "image"}]}, REPLY], "a message has no 'text'"),
    ],
)
def test_what_a_chat_file_cannot_say(read: Any, messages: Any, said: str) -> None:
    with pytest.raises(UserError, match=r"line 1: ") as error:
        read({"messages": messages})
    assert said in str(error.value) and "\n" not in str(error.value)
