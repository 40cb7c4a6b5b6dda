"""Asking a server as its clients do, streamed and not, and putting a stream together."""

from __future__ import annotations

import json
from typing import Any

from starlette.testclient import TestClient

from tests.assistant.conftest import MODEL

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def body(text: str = "Hi?", **others: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **others}


def chat(client: TestClient, **others: Any) -> dict[str, Any]:
    """The answer to a conversation, not streamed."""
    answer = client.post(CHAT, json=body(**others))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chunks(text: str) -> list[dict[str, Any]]:
    """The events of a stream, which must end as streams do."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def streamed(client: TestClient, **others: Any) -> dict[str, Any]:
    """The same answer, put together from its stream as clients do it."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = client.post(CHAT, json=body(**others, **options))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return joined(chunks(answer.text))


def joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        assert event["object"] == "chat.completion.chunk"
        for choice in event["choices"]:
            own = choices.setdefault(
                choice["index"],
                {"index": choice["index"], "message": {"refusal": None}, "logprobs": None},
            )
            assert own.get("finish_reason") is None, "nothing follows the end"
            own["finish_reason"] = choice["finish_reason"]
            _add(own["message"], choice["delta"])
            if choice["logprobs"]:
                own["logprobs"] = own["logprobs"] or {"content": [], "refusal": None}
                own["logprobs"]["content"] += choice["logprobs"]["content"]
    assert not events[-1]["choices"]
    head = {"object": "chat.completion", "usage": events[-1]["usage"]}
    return {**head, "choices": [choices[place] for place in sorted(choices)]}


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            for call in value:
                _add_call(message.setdefault("tool_calls", []), call)
        else:
            message[key] = message.get(key, "") + value


def _add_call(calls: list[dict[str, Any]], call: dict[str, Any]) -> None:
    place = call.pop("index")
    if place == len(calls):
        assert call["id"]
        calls.append(call)
    else:
        assert place == len(calls) - 1
        assert call.keys() == {"function"}
        calls[place]["function"]["arguments"] += call["function"]["arguments"]


def without_ids(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """An answer's choices, for comparing two: ids differ, and nothing said is null or empty."""
    for choice in answer["choices"]:
        message = choice["message"]
        message["content"] = message["content"] or ""
        for call in message.get("tool_calls", ()):
            assert call.pop("id").startswith("call_")
        for entry in (choice["logprobs"] or {}).get("content", ()):
            # The prompt of the second is in the cache, and its last token fed alone.
            for told in (entry, *entry["top_logprobs"]):
                told["logprob"] = round(told["logprob"], 2)
    found: list[dict[str, Any]] = answer["choices"]
    return found
