"""Replies held to a form over HTTP, by a model that knows nothing: whatever ends is what was asked.

Random schemas and the automaton itself: `test_grammar`, `test_schemas`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from gptoss_onnx.runtimes import generation
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.sampling import Sampler
from tests.assistant.asking import CHAT, WEATHER, body, chat, streamed
from tests.assistant.conftest import Says

SEEDS = (1, 100, 10_000)
CHOICES = 8  # of a request: they are written at once
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "城市": {"enum": ["上海", "Köln", "🎉"]},
        "days": {"type": "integer", "minimum": -5, "maximum": 40},
        "rain": {"type": "array", "items": {"$ref": "#/$defs/rain"}, "maxItems": 3},
    },
    "required": ["name", "城市", "days", "rain"],
    "additionalProperties": False,
    "$defs": {"rain": {"type": ["boolean", "null"]}},
}
ANY_OBJECT = {"type": "json_object"}
FORMAT = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}},
]
NAMED = {"type": "function", "function": {"name": "f"}}
ASK = {False: chat, True: streamed}
Reply = dict[str, Any]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, package: Package) -> None:
    """A model to which all is the same, on every processor, but to end what it began."""
    bonus = np.zeros(package.manifest.vocab_size, np.float32)
    for name in ("<|end|>", "<|start|>", "<|return|>", "<|call|>"):
        bonus[package.tokenizer.special(name)] = 5
    bonus[[ord(letter) for letter in '"}]']] = 3

    class Hurried(Sampler):
        def next(self, logits: NDArray[np.float32]) -> int:
            return super().next(np.where(np.isfinite(logits), bonus, -np.inf).astype(np.float32))

    monkeypatch.setattr(generation, "Sampler", Hurried)


def replies(client: TestClient, stream: bool, **asked: Any) -> list[Reply]:
    """Those of every seed that the model has ended by itself, and some it must have."""
    found: list[Reply] = []
    for seed in SEEDS:
        options = {"n": CHOICES, "seed": seed, "temperature": 1, "max_tokens": 1000}
        found += ASK[stream](client, **options, **asked)["choices"]
    assert len(found) == CHOICES * len(SEEDS)
    ended = [reply for reply in found if reply["finish_reason"] != "length"]
    assert len(ended) >= CHOICES
    for reply in ended:
        called = "tool_calls" if reply["message"].get("tool_calls") else "stop"
        assert reply["finish_reason"] == called
    return ended


def calls(reply: Reply) -> list[dict[str, Any]]:
    return [call["function"] for call in reply["message"].get("tool_calls", [])]


def check(text: str, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", [ANY_OBJECT, FORMAT])
def test_every_answer_is_of_the_format(
    form: dict[str, Any], stream: bool, client: TestClient
) -> None:
    texts = set()
    for reply in replies(client, stream, response_format=form):
        assert not calls(reply)
        check(reply["message"]["content"], SCHEMA if form is FORMAT else {"type": "object"})
        texts.add(reply["message"]["content"])
    assert len(texts) > 2


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("parallel", [None, True, False])
@pytest.mark.parametrize("choice", ["auto", "none", "required", NAMED])
def test_every_call_is_of_its_tool(
    choice: Any, parallel: bool | None, stream: bool, client: TestClient
) -> None:
    asked = {} if parallel is None else {"parallel_tool_calls": parallel}
    ended = replies(client, stream, tools=TOOLS, tool_choice=choice, **asked)
    counts = {len(calls(reply)) for reply in ended}
    names = {call["name"] for reply in ended for call in calls(reply)}
    for reply in ended:
        for call in calls(reply):
            if call["name"] == "f":
                check(call["arguments"], SCHEMA)
            elif choice != "auto":
                check(call["arguments"], {"type": "object"})
    if choice == "auto":  # as it likes
        assert names <= {"f", "g"} and 0 in counts and len(counts) > 1
    else:
        assert names == {"none": set(), "required": {"f", "g"}}.get(str(choice), {"f"})
        assert (0 in counts) == (choice == "none")
    if parallel is False or choice != "auto":
        assert (max(counts) > 1) == (choice != "none" and parallel is not False)


def test_a_call_or_an_answer_of_the_format(client: TestClient, hurried: None) -> None:
    both = replies(client, False, tools=TOOLS, response_format=FORMAT)
    for reply in both:
        if not calls(reply):
            check(reply["message"]["content"], SCHEMA)
    assert {bool(calls(reply)) for reply in both} == {True, False}


THOUGHT = "<|channel|>analysis<|message|>No { JSON: 你好.<|end|><|start|>assistant"


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_and_a_preamble_are_free(stream: bool, client: TestClient, says: Says) -> None:
    preamble = "<|channel|>commentary<|message|>Let me [see.<|end|><|start|>assistant"
    header = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
    says(f"{THOUGHT}{preamble}{header}Sure! It is 上海.<|call|>")
    (reply,) = ASK[stream](client, tools=TOOLS, tool_choice=NAMED)["choices"]
    assert reply["message"]["reasoning"] == "No { JSON: 你好."
    assert reply["message"]["content"] == "Let me [see."
    (call,) = calls(reply)
    check(call["arguments"], SCHEMA)


def refused(schema: Any, *, strict: bool = True) -> list[dict[str, Any]]:
    """A schema where a request may have one."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}
    tool = {"type": "function", "function": {"name": "x", "parameters": schema, "strict": True}}
    return [{"response_format": form}, {"tools": [tool]}]


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"type": "object", "properties": {"a": {"type": "objekt"}}}, "objekt"),
    "a list as properties": ({"type": "object", "properties": []}, "cannot be enforced"),
    "a reference to nowhere": ({"type": "object", "$ref": "#/$defs/x"}, "cannot be enforced"),
    "a reference to itself": (
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "cannot be enforced"),
    "an address": ({"$ref": "http://127.0.0.1:9/x.json"}, "cannot be enforced"),
    "a file": ({"$ref": "file:///etc/passwd"}, "cannot be enforced"),
    "nothing can be of it": (
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}},
         "required": ["a"]}, "cannot be enforced"),
    "half a pattern": (
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, "unclosed"),
    "deep": (deep(80), "nested too deeply"),
    "many values": (
        {"type": "object", "properties": {"a": {"enum": [f"v{i}" for i in range(20_000)]}}},
        "characters|the prompt has"),
    "half a character": (
        {"type": "object", "properties": {"a": {"const": "\ud800"}}}, "cannot be enforced"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_a_schema_that_cannot_be_is_the_callers_mistake(
    case: str, stream: bool, client: TestClient, says: Says
) -> None:
    schema, words = BAD[case]
    for asked in refused(schema):
        # As bytes: httpx refuses half a character itself.
        data = json.dumps(body(stream=stream, **asked)).encode()
        answer = client.post(CHAT, content=data, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert re.search(words, error["message"]) and "\n" not in error["message"]
        assert len(error["message"]) < 400
    says("<|channel|>final<|message|>Hi<|return|>")
    assert chat(client)["choices"][0]["message"]["content"] == "Hi"


def test_not_strict_is_held_to_what_can_be(client: TestClient, hurried: None) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "format": "unheard-of", "maxLength": 4}},
        "required": ["a"],
        "additionalProperties": False,
    }
    strict, loose = (refused(schema, strict=strict)[0] for strict in (True, False))
    assert client.post(CHAT, json=body(**strict)).status_code == 400
    for reply in replies(client, False, **loose):
        assert json.loads(reply["message"]["content"]).keys() == {"a"}


GROWS = {
    "type": "object",
    "properties": {"a": {"type": "string", "pattern": "^(a{1000}){1000}$"}},
    "required": ["a"],
    "additionalProperties": False,
}


def test_a_schema_that_outgrows_its_limits_ends_its_reply_alone(
    client: TestClient, says: Says
) -> None:
    """What it had written would be no JSON."""
    says(f'{THOUGHT}<|channel|>final<|message|>{{"a": "' + "a" * 50 + '"}<|return|>')
    asked = refused(GROWS)[0]
    answer = client.post(CHAT, json=body(**asked))
    assert answer.status_code == 400  # clients ask again after a 503
    assert "make it simpler" in answer.json()["error"]["message"]
    stream = client.post(CHAT, json=body(stream=True, **asked)).text.split("\n\n")
    assert stream.pop() == ""
    *events, last = (json.loads(event.removeprefix("data: ")) for event in stream)
    assert "make it simpler" in last["error"]["message"]
    assert not any(choice["finish_reason"] for event in events for choice in event["choices"])
    says("<|channel|>final<|message|>Hi<|return|>")
    assert chat(client, tools=[WEATHER])["choices"][0]["message"]["content"] == "Hi"
