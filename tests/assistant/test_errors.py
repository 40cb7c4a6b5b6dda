"""Whatever a caller sends, an answer that says what is wrong, in OpenAI's shape: never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from gptoss_onnx.assistant.streams import one_write
from gptoss_onnx.runtimes import scheduler
from tests.assistant.asking import CHAT, WEATHER, body, chat
from tests.assistant.conftest import MODEL, Says, Serve

COMPLETIONS = "/v1/completions"


def check(answer: Any, status: int, words: str = "", param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"model": "\xc3"}', "not UTF-8"),
        (b'\xef\xbb\xbf{"model": "m"}', "not JSON"),
        (b'{"temperature": NaN}', "NaN is no JSON"),
        (b'{"temperature": -Infinity}', "no JSON"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"n": ' + b"9" * 5000 + b"}", "too large"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"3", "must be a JSON object"),
        (b"{}", "model: Field required"),
    ],
)
def test_bodies_that_are_none(path: str, data: bytes, words: str, client: TestClient) -> None:
    check(client.post(path, content=data), 400, words)


TOOL = WEATHER["function"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": 3}, "model", "string"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hi"}, "messages", "list"),
        ({"messages": [3]}, "messages.0", ""),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0", "king"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", ""),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", ""),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages.0.content", "images are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
         "messages.0.content", "audio are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
         "messages.0.content", "files are not supported"),
        ({"messages": [{"role": "user", "content": ["text"]}]}, "messages.0.content", "part"),
        ({"messages": [{"role": "user", "content": [{"type": {}}]}]}, "messages.0.content", "part"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", ""),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": -0.1}, "temperature", "greater"),
        ({"temperature": 3}, "temperature", "less"),
        ({"temperature": True}, "temperature", ""),
        ({"top_p": 1.5}, "top_p", ""),
        ({"top_k": 1.5}, "top_k", ""),
        ({"min_p": -1}, "min_p", ""),
        ({"repetition_penalty": 0}, "repetition_penalty", ""),
        ({"seed": "x"}, "seed", ""),
        ({"seed": 1 << 64}, "seed", ""),
        ({"n": 0}, "n", ""),
        ({"n": 129}, "n", ""),
        ({"max_tokens": 0}, "max_tokens", ""),
        ({"max_completion_tokens": -1}, "max_completion_tokens", ""),
        ({"max_tokens": 10**200}, "max_tokens", ""),
        ({"stop": ["a"] * 5}, "stop", ""),
        ({"stop": 3}, "stop", ""),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", ""),
        ({"logprobs": 1}, "logprobs", ""),
        ({"stream": "yes"}, "stream", ""),
        ({"reasoning_effort": "huge"}, "reasoning_effort", ""),
        ({"reasoning": {"effort": 3}}, "reasoning.effort", ""),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "repetition_penalty"),
        ({"presence_penalty": -1}, "presence_penalty", "repetition_penalty"),
        ({"logit_bias": {"50256": -100}}, "logit_bias", "not supported"),
        ({"functions": [TOOL]}, "functions", "not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", ""),
        ({"tools": [{"type": "function"}]}, "tools.0.function", ""),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]},
         "tools.0.function.name", ""),
        ({"tools": [{"type": "function", "function": {"name": "<|end|>"}}]},
         "tools.0.function.name", ""),
        ({"tools": [WEATHER, WEATHER]}, None, "get_weather"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]},
         "tools.0.function.parameters", ""),
        ({"tool_choice": "some", "tools": [WEATHER]}, "tool_choice", ""),
        ({"tool_choice": "required"}, "tool_choice", "none in tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [WEATHER]},
         "tool_choice", "names none"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", ""),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "strict": True, "schema": {"type": "king"}}}}, None, "response_format"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be(
    fields: dict[str, Any], param: str | None, words: str, client: TestClient
) -> None:
    check(client.post(CHAT, json={**body(), **fields}), 400, words, param)
    streamed = client.post(CHAT, json={**body(), "stream": fields.get("stream", True), **fields})
    check(streamed, 400, words, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [-3]}, None),
        ({"prompt": [10**9]}, None),
        ({"prompt": [10**200]}, None),
        ({"suffix": "x"}, "suffix"),
        ({"suffix": False}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"echo": True, "logprobs": 0}, "echo"),
    ],
)
def test_fields_of_completions_that_cannot_be(
    fields: dict[str, Any], param: str | None, client: TestClient
) -> None:
    given = {"model": MODEL, "prompt": "a", "max_tokens": 1, **fields}
    answer = client.post(COMPLETIONS, json=given)
    check(answer, 400)
    if param:
        assert answer.json()["error"]["param"].startswith(param)


def test_a_model_that_is_not_served(client: TestClient) -> None:
    answer = client.post(CHAT, content=json.dumps({**body(), "model": "gpt-5\ud800"}))
    check(answer, 404, MODEL, "model")
    assert answer.json()["error"]["code"] == "model_not_found"


def test_paths_and_methods_that_are_none(client: TestClient) -> None:
    check(client.get("/v1/nothing"), 404)
    check(client.get("/v1/models/"), 404)
    answer = client.get(CHAT)
    check(answer, 405)
    assert answer.headers["allow"] == "POST"
    check(client.post("/v1/models", json={}), 405)


def test_a_prompt_that_is_too_long(client: TestClient) -> None:
    answer = client.post(CHAT, json=body("word " * 1000))
    check(answer, 400, "shorten the prompt")
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    check(client.post(COMPLETIONS, json={"model": MODEL, "prompt": "word " * 1000}), 400, "shorten")


def test_a_full_queue_asks_to_come_again(serve: Serve, says: Says) -> None:
    client = serve(rows=1, queue=2)
    says("<|channel|>final<|message|>a<|return|>")
    answer = client.post(CHAT, json=body(n=10))
    check(answer, 429, "try again")
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "queue_full"
    assert chat(client, n=2)["choices"]  # those of the refused request have left


def test_an_error_amid_a_stream_is_its_last_event(
    client: TestClient, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    says("<|channel|>final<|message|>abc<|return|>")
    logged = scheduler._told

    def fail(token: int, *rest: Any) -> Any:
        if token == ord("b"):
            raise ValueError("broken: /secret/path")
        return logged(token, *rest)

    monkeypatch.setattr(scheduler, "_told", fail)
    events = client.post(CHAT, json=body(stream=True)).text.strip().split("\n\n")
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
    assert '"content":"a"' in events[-2]
    check(client.post(CHAT, json=body()), 500)
    monkeypatch.undo()
    assert client.get("/health").status_code == 200


def test_what_came_before_an_error_is_sent_first() -> None:
    def events() -> Iterator[bytes]:
        yield b"a"
        yield b"b"
        raise ValueError

    sent = one_write(events())
    assert next(sent) == b"ab"
    with pytest.raises(ValueError):
        next(sent)
    assert list(one_write([b"a", b"b"])) == [b"ab"]
