"""Asking for responses as clients do, streamed and not, and what must be true of every stream."""

from __future__ import annotations

import json
from typing import Any

from starlette.testclient import TestClient

from tests.assistant.conftest import MODEL

RESPONSES = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ANSWER = f"{THOUGHT}<|channel|>final<|message|>Grüße!<|return|>"
CALL = (
    f"{THOUGHT}<|channel|>commentary to=functions.get_weather <|constrain|>json"
    '<|message|>{"city": "Ulm"}<|call|>'
)
Json = dict[str, Any]


def body(input: Any = "Hi?", **others: Any) -> Json:
    return {"model": MODEL, "input": input, **others}


def encoded(content: Json) -> bytes:
    """In ASCII: half a character has no other form."""
    return json.dumps(content).encode()


def respond(client: TestClient, input: Any = "Hi?", **others: Any) -> Json:
    """The response, not streamed."""
    answer = client.post(RESPONSES, content=encoded(body(input, **others)))
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def events(client: TestClient, input: Any = "Hi?", **others: Any) -> list[Json]:
    """Those of a stream, each named and numbered."""
    answer = client.post(RESPONSES, content=encoded(body(input, stream=True, **others)))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parsed(answer.text)


def parsed(text: str) -> list[Json]:
    assert text.endswith("\n\n")
    found = []
    for place, event in enumerate(text.split("\n\n")[:-1]):
        name, data = event.split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert name == f"event: {content['type']}"
        assert content["sequence_number"] == place
        found.append(content)
    return found


def streamed(client: TestClient, input: Any = "Hi?", **others: Any) -> Json:
    """The last response of a stream, which the events before it must have told."""
    return told(events(client, input, **others))


def told(found: list[Json]) -> Json:
    names = [event["type"] for event in found]
    assert names[:2] == ["response.created", "response.in_progress"]
    last: Json = found[-1]["response"]
    assert names[-1] == f"response.{last['status']}"
    for event in found[:2]:
        response = event["response"]
        assert response["id"] == last["id"]
        assert (response["status"], response["output"]) == ("in_progress", [])
        assert response["usage"] is None
    assert _items(found[2:-1]) == last["output"]
    return last


def _items(found: list[Json]) -> list[Json]:
    """Put together from what is said of them, each whole before the next begins."""
    done: list[Json] = []
    item: Json = {}
    for event in found:
        kind = event["type"].removeprefix("response.")
        assert event["output_index"] == len(done)
        if kind == "output_item.added":
            assert not item
            item = event["item"]
            assert item["status"] == "in_progress"
        elif kind == "output_item.done":
            assert {**event["item"], "status": "in_progress"} == item
            done.append(event["item"])
            item = {}
        else:
            assert event["item_id"] == item["id"]
            _add(item, kind, event)
    assert not item
    return done


def _add(item: Json, kind: str, event: Json) -> None:
    if kind == "function_call_arguments.delta":
        item["arguments"] += event["delta"]
    elif kind == "function_call_arguments.done":
        assert event["arguments"] == item["arguments"]
    elif kind == "content_part.added":
        assert not item["content"]
        assert event["content_index"] == 0
        assert event["part"]["text"] == ""
        item["content"].append(event["part"])
    elif kind == "content_part.done":
        assert event["part"] == item["content"][event["content_index"]]
    else:
        part = item["content"][event["content_index"]]
        assert kind in (f"{part['type']}.delta", f"{part['type']}.done")
        if kind.endswith("delta"):
            assert event["delta"]
            part["text"] += event["delta"]
            if "logprobs" in part:
                part["logprobs"] = part["logprobs"] + event["logprobs"]
        else:
            assert event["text"] == part["text"]
            assert event.get("logprobs") == part.get("logprobs")


def plain(response: Json) -> Json:
    """For comparing two: without ids and times; usage differs in what is cached."""
    known = ("id", "created_at", "completed_at", "previous_response_id")
    found = {key: value for key, value in response.items() if key not in known}
    found["output"] = [
        {key: value for key, value in item.items() if key not in ("id", "call_id")}
        for item in found["output"]
    ]
    for item in found["output"]:
        for part in item.get("content", ()):
            for entry in part.get("logprobs", ()):
                # The prompt of the second is in the cache, and its last token fed alone.
                for one in (entry, *entry["top_logprobs"]):
                    one["logprob"] = round(one["logprob"], 2)
    found["usage"] = {k: v for k, v in found["usage"].items() if not k.startswith("input_tokens_")}
    return found


def both(client: TestClient, input: Any = "Hi?", **others: Any) -> Json:
    """The response, found equal streamed and not."""
    whole = plain(respond(client, input, **others))
    assert whole == plain(streamed(client, input, **others))
    return whole


def text_of(response: Json) -> str:
    """As clients join it."""
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )
