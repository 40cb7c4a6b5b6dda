"""What a reply leaves: the answer, the calls, the history and what the model is shown next."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gptoss_onnx.runtimes.generation import FinishReason
from gptoss_onnx.runtimes.harmony import Harmony, Message
from gptoss_onnx.runtimes.reply import Reply, ToolCall, read_reply
from gptoss_onnx.runtimes.stream_parser import kind_of
from gptoss_onnx.runtimes.tokenizer import Tokenizer
from tests.runtimes.replies import FINAL, LONG, STOP_IDS, TOOLS
from tests.runtimes.test_stream_parser import DEMO, encode, random_reply

CALL = "<|channel|>commentary to={} <|constrain|>json<|message|>{{}}<|call|>"
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ON_ANALYSIS = "<|channel|>analysis to=python code<|message|>print(1)<|call|>"
QUESTION = Message("user", "And tomorrow?")
ANSWER = Message("assistant", "Sunny.", "final")


def result(name: str, channel: str = "commentary") -> Message:
    return Message(name, "sun", channel, "assistant")


# name: what follows `<|start|>assistant` behind "Weather?", why it ended, and what comes then.
FOLLOWED: dict[str, tuple[str, FinishReason, list[Message]]] = {
    "answer": (THOUGHT + FINAL.removeprefix("<|start|>assistant"), "stop", [QUESTION]),
    "a stop of the package's own": (
        THOUGHT + "<|start|>assistant<|channel|>final<|message|>Hi<|startoftext|>",
        "stop",
        [QUESTION],
    ),
    "two answers": (
        "<|channel|>final<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>Two.",
        "stop",
        [QUESTION],
    ),
    "text in the channel, then an answer": (
        f"<|channel|>We need to answer.<|end|>{FINAL}",
        "stop",
        [QUESTION],
    ),
    "call, its result": (
        THOUGHT + CALL.format("functions.f"),
        "stop",
        [result("functions.f")],
    ),
    "call named in the role, its result": (
        THOUGHT + " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
        "stop",
        [result("functions.f")],
    ),
    "result by a short name": (CALL.format("functions.f"), "stop", [result("f")]),
    "result by a long name": (
        CALL.format("get_weather"),
        "stop",
        [result("functions.get_weather")],
    ),
    "result by its exact name": (CALL.format("files.read"), "stop", [result("files.read")]),
    "results of two calls": (
        CALL.format("functions.f").replace("<|call|>", "<|end|><|start|>assistant")
        + CALL.format("get_weather"),
        "stop",
        [result("get_weather"), result("f")],
    ),
    "results of two calls named alike": (
        CALL.format("functions.get_weather").replace("<|call|>", "<|end|><|start|>assistant")
        + CALL.format("get_weather"),
        "stop",
        [result("get_weather"), result("functions.get_weather")],
    ),
    "call without to=, its result": (
        "<|channel|>commentary get_weather <|constrain|>json<|message|>{}<|call|>",
        "stop",
        [result("get_weather")],
    ),
    "arguments in the header, their result": (
        '<|channel|>commentary to=functions.f <|constrain|>json{"c": 1}<|call|>',
        "stop",
        [result("functions.f")],
    ),
    "arguments that are no JSON": (
        "<|channel|>commentary to=functions.f<|message|>{'c': 1}<|call|>",
        "stop",
        [Message("functions.f", str(ToolCall("functions.f", "").error), "commentary", "assistant")],
    ),
    "call without arguments": (
        THOUGHT + "<|channel|>commentary to=functions.f<|call|>",
        "stop",
        [QUESTION],
    ),
    "answered call": (
        THOUGHT + CALL.format("functions.f"),
        "stop",
        [result("functions.f"), ANSWER, QUESTION],
    ),
    "call on the analysis channel, answered": (
        THOUGHT + ON_ANALYSIS,
        "stop",
        [result("python", "analysis"), ANSWER, QUESTION],
    ),
    "call on the analysis channel, not answered yet": (
        THOUGHT + ON_ANALYSIS,
        "stop",
        [result("python", "analysis")],
    ),
    "call that had no result": (
        THOUGHT + CALL.format("functions.f"),
        "stop",
        [QUESTION],
    ),
    "call that had no result beside one that had": (
        CALL.format("functions.f").replace("<|call|>", "<|end|><|start|>assistant")
        + CALL.format("get_weather"),
        "stop",
        [result("get_weather"), ANSWER, QUESTION],
    ),
    "malformed headers": (
        "<|channel|>analysis<|channel|>final<|constrain|><|constrain|>x<|message|>Hm<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>json <|constrain|>text and more<|message|>"
        "{}<|return|>",
        "stop",
        [],
    ),
    "malformed header of a call": (
        "<|channel|>commentary<|channel|>to=functions.f<|constrain|><|constrain|>json<|message|>{}"
        "<|call|>",
        "stop",
        [result("functions.f")],
    ),
    "the user's words": (
        "<|channel|>final<|message|>Hi<|end|><|start|>user<|channel|>final<|message|>Me<|return|>",
        "stop",
        [QUESTION],
    ),
    "reasoning, cut": ("<|channel|>analysis<|message|>Hm", "length", [QUESTION]),
    "reasoning, cut behind it": (THOUGHT, "length", [QUESTION]),
    "nothing, cut": ("<|channel|>", "length", [QUESTION]),
    "call, cut": (CALL.format("functions.f").removesuffix("<|call|>"), "length", [QUESTION]),
    "call without to=, cut": (
        '<|channel|>commentary get_weather json<|message|>{"a"',
        "cancelled",
        [QUESTION],
    ),
    "answer, cut": (f"{THOUGHT}<|channel|>final<|message|>Hi", "cancelled", [QUESTION]),
    "answer, cut before it": (f"{THOUGHT}<|channel|>final<|message|>", "cancelled", [QUESTION]),
}
# A call's arguments: a JSON object as every language reads it, or for python any text.
ARGUMENTS = [
    ("functions.f", text)
    for text in (
        "{}", ' {"a": [1, 2.5e3, "\\u00e9", null]}\n', '{"a": 1, "a": 2}',
        "", "[]", "1", '"{}"', "null", "{", "{}}", "{'a': 1}", '{"a": NaN}', '{"a": -Infinity}',
        '{"a": 01}', '{"a": 1,}', '{"a": "\n"}', "{} // none", "\ufeff{}", "\u00a0{}",
    )
] + [("python", "print(1)"), ("functions.python", "print(1)")]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO)


def shown(tokenizer: Tokenizer, name: str) -> tuple[Reply, str]:
    """The reply of that name, and what the model is shown behind it."""
    text, reason, behind = FOLLOWED[name]
    reply = read_reply(tokenizer, encode(tokenizer, text), reason, TOOLS, STOP_IDS)
    messages = [Message("user", "Weather?"), *reply.messages, *behind]
    return reply, tokenizer.show(Harmony(tokenizer).render(messages, system=None))


USER = "<|start|>user<|message|>"
ASKED = f"{USER}Weather?<|end|><|start|>assistant"
NEXT = f"{USER}And tomorrow?<|end|><|start|>assistant"
TOLD = "<|start|>{} to=assistant<|channel|>commentary<|message|>sun<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("answer", f"<|channel|>final<|message|>Hi<|end|>{NEXT}"),
        ("call, its result", THOUGHT + CALL.format("functions.f") + TOLD.format("functions.f")),
        (
            "call named in the role, its result",
            f"{FOLLOWED['call named in the role, its result'][0]}{TOLD.format('functions.f')}",
        ),
        ("result by a short name", CALL.format("functions.f") + TOLD.format("functions.f")),
        ("result by a long name", CALL.format("get_weather") + TOLD.format("get_weather")),
        ("result by its exact name", CALL.format("files.read") + TOLD.format("files.read")),
        (
            "results of two calls named alike",
            CALL.format("functions.get_weather")
            + "<|start|>assistant"
            + CALL.format("get_weather")
            + TOLD.format("get_weather").removesuffix("<|start|>assistant")
            + TOLD.format("functions.get_weather"),
        ),
        ("call without to=, its result", CALL.format("get_weather") + TOLD.format("get_weather")),
        (
            "answered call",
            CALL.format("functions.f")
            + TOLD.format("functions.f")
            + f"<|channel|>final<|message|>Sunny.<|end|>{NEXT}",
        ),
        (
            "call on the analysis channel, answered",
            ON_ANALYSIS
            + TOLD.format("python").replace("commentary", "analysis")
            + f"<|channel|>final<|message|>Sunny.<|end|>{NEXT}",
        ),
        (
            "call on the analysis channel, not answered yet",
            THOUGHT + ON_ANALYSIS + TOLD.format("python").replace("commentary", "analysis"),
        ),
        (
            "call that had no result beside one that had",
            CALL.format("get_weather")
            + TOLD.format("get_weather")
            + f"<|channel|>final<|message|>Sunny.<|end|>{NEXT}",
        ),
        ("malformed header of a call", CALL.format("functions.f") + TOLD.format("functions.f")),
    ],
)
def test_the_model_is_shown(tokenizer: Tokenizer, name: str, behind: str) -> None:
    assert shown(tokenizer, name)[1] == ASKED + behind


def test_what_no_call_or_result_belongs_to_is_dropped(tokenizer: Tokenizer) -> None:
    for name in ("call that had no result", "call without arguments"):
        thought = THOUGHT.removesuffix("<|start|>assistant")
        assert shown(tokenizer, name)[1] == f"{ASKED}{thought}{NEXT}"


@pytest.mark.parametrize("name", [name for name in FOLLOWED if "cut" in name])
def test_a_cut_reply_keeps_what_a_reader_saw(tokenizer: Tokenizer, name: str) -> None:
    reply, next_prompt = shown(tokenizer, name)
    answer = "Hi" if name == "answer, cut" else ""
    kept = f"<|start|>assistant<|channel|>final<|message|>{answer}<|end|>" if answer else ""
    assert (reply.text, reply.calls) == (answer, [])
    assert next_prompt == ASKED.removesuffix("<|start|>assistant") + kept + NEXT
    kinds = {"call": "call", "answer": "final"}
    assert reply.cut_in == kinds.get(name.split(",")[0].split()[0], "analysis")


def test_messages_of_an_answer_do_not_run_together(tokenizer: Tokenizer) -> None:
    assert shown(tokenizer, "two answers")[0].text == "One.\n\nTwo."
    assert shown(tokenizer, "text in the channel, then an answer")[0].text == "Hi"


def test_arguments_that_are_no_json_object_are_not_called(tokenizer: Tokenizer) -> None:
    good = [text for name, text in ARGUMENTS if ToolCall(name, text).error is None]
    assert good == [ARGUMENTS[0][1], ARGUMENTS[1][1], ARGUMENTS[2][1], "print(1)"]
    for text in ("[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}"):
        ToolCall("functions.f", text).error  # noqa: B018
    assert "\n" not in str(ToolCall("functions.f", "").error)


@pytest.mark.slow
def test_whatever_is_written_can_be_fed_back(tokenizer: Tokenizer) -> None:
    draw, harmony = random.Random(7), Harmony(tokenizer)
    start, end = tokenizer.special("<|start|>"), tokenizer.special("<|message|>")
    for _ in range(1000):
        ids = random_reply(tokenizer, draw)
        reply = read_reply(tokenizer, ids, draw.choice(["stop", "length", "cancelled"]), TOOLS)
        results = [result(call.name, call.channel) for call in reply.calls]
        messages = [Message("user", "a"), *reply.messages, *results, Message("user", "b")]
        prompt = harmony.render(messages, system=None)
        finals = [m for m in reply.said if kind_of(m) == "final" and m.content]
        assert reply.text == "\n\n".join(m.content for m in finals)
        headers = [i for i, token in enumerate(prompt) if token == start][:-1]
        assert len(headers) == sum(token == end for token in prompt)
        for call in reply.calls:
            assert prompt.count(tokenizer.special("<|call|>")) == len(reply.calls), call


@pytest.mark.slow
def test_text_that_is_fed_back_is_read_as_it_was(tokenizer: Tokenizer) -> None:
    """Rendering what was understood and reading it again changes nothing."""
    draw, harmony = random.Random(9), Harmony(tokenizer)
    opened = len(harmony.render([], system=None))
    for _ in range(1000):
        for message in read_reply(tokenizer, random_reply(tokenizer, draw), "stop", TOOLS).said:
            ids = harmony.render([message], system=None, reply=False)[opened:]
            assert read_reply(tokenizer, ids, "stop", TOOLS).said == [message], tokenizer.show(ids)


def test_the_vocabulary_is_the_demos() -> None:
    assert (Path(DEMO) / "tokenizer.json").is_file()
    assert len(LONG) > 256
