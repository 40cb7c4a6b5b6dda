"""Output items and their events: what each parameter of a response does, streamed and not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from gptoss_onnx.runtimes.package import Package
from tests.assistant.conftest import MODEL, Says
from tests.assistant.responding import (
    ANSWER,
    CALL,
    THOUGHT,
    WEATHER,
    both,
    events,
    respond,
    streamed,
    text_of,
    told,
)
from tests.runtimes.scripted import encode


def test_an_answer_with_its_reasoning(client: TestClient, says: Says) -> None:
    says(ANSWER)
    response = respond(client)
    number = response["id"].removeprefix("resp_")
    assert response["output"] == [
        {
            "id": f"rs_{number}_0",
            "type": "reasoning",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "id": f"msg_{number}_1",
            "type": "message",
            "role": "assistant",
            "phase": "final_answer",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "Grüße!", "annotations": [], "logprobs": []}
            ],
        },
    ]
    assert (response["object"], response["model"]) == ("response", MODEL)
    assert (response["status"], response["error"]) == ("completed", None)
    assert response["incomplete_details"] is None
    assert response["completed_at"] >= response["created_at"]
    assert text_of(both(client)) == "Grüße!"


def test_the_events_of_an_answer_in_their_order(client: TestClient, says: Says) -> None:
    says(ANSWER)
    names = [event["type"].removeprefix("response.") for event in events(client)]
    assert list(dict.fromkeys(names)) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_text.delta",
        "output_text.done",
        "completed",
    ]
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert names.count("output_item.added") == names.count("output_item.done") == 2
    assert names.count("output_text.delta") > 1  # as it is written


def test_the_events_of_a_call(client: TestClient, says: Says) -> None:
    says(CALL)
    found = events(client, tools=[WEATHER])
    call = told(found)["output"][1]
    assert call["type"] == "function_call"
    assert call["call_id"].startswith("call_")
    assert (call["name"], call["arguments"]) == ("get_weather", '{"city": "Ulm"}')
    names = [event["type"].removeprefix("response.") for event in found if "output_index" in event]
    letters = ["function_call_arguments.delta"] * len(call["arguments"])
    done = ["function_call_arguments.done", "output_item.done"]
    assert names[-len(letters) - 3 :] == ["output_item.added", *letters, *done]
    assert both(client, tools=[WEATHER])["status"] == "completed"


TWO = (
    "<|channel|>commentary<|message|>Let me check.<|end|><|start|>assistant"
    "<|channel|>commentary to=functions.get_weather<|message|>{}<|end|><|start|>assistant"
    '<|channel|>commentary to=functions.get_weather<|message|>{"city": 1}<|call|>'
)


def test_several_calls_at_once_and_a_preamble(client: TestClient, says: Says) -> None:
    says(TWO)
    output = respond(client, tools=[WEATHER])["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert output[0]["phase"] == "commentary"
    assert len({item["call_id"] for item in output[1:]}) == 2
    found = both(client, tools=[WEATHER])["output"]
    assert [item["arguments"] for item in found[1:]] == ["{}", '{"city": 1}']
    alone = both(client, tools=[WEATHER], parallel_tool_calls=False)
    assert [item.get("arguments") for item in alone["output"]] == [None, "{}"]
    assert (alone["status"], alone["parallel_tool_calls"]) == ("completed", False)


def test_usage_counts_what_was_reused_and_thought(
    client: TestClient, says: Says, package: Package
) -> None:
    says(ANSWER)
    first, again = respond(client)["usage"], streamed(client)["usage"]
    tokens = len(encode(package, ANSWER))
    assert first["output_tokens"] == again["output_tokens"] == tokens
    assert first["input_tokens_details"]["cached_tokens"] == 0
    assert again["input_tokens_details"]["cached_tokens"] == first["input_tokens"] - 1
    thought = first["output_tokens_details"]["reasoning_tokens"]
    assert thought == len(encode(package, THOUGHT.partition("<|end|>")[0]))
    assert first["total_tokens"] == first["input_tokens"] + tokens


def test_an_answer_that_was_cut(client: TestClient, says: Says, package: Package) -> None:
    says(ANSWER)
    thought = len(encode(package, THOUGHT.partition(".")[0]))
    for limit, kind in (thought, "reasoning"), (len(encode(package, ANSWER)) - 3, "message"):
        found = both(client, max_output_tokens=limit)
        assert found["status"] == "incomplete"
        assert found["incomplete_details"] == {"reason": "max_output_tokens"}
        assert found["max_output_tokens"] == found["usage"]["output_tokens"] == limit
        assert (found["output"][-1]["type"], found["output"][-1]["status"]) == (kind, "incomplete")
        assert all(item["status"] == "completed" for item in found["output"][:-1])


def test_arguments_that_were_cut_are_never_done(client: TestClient, says: Says) -> None:
    says(CALL)
    limit = respond(client, tools=[WEATHER])["usage"]["output_tokens"] - 4
    found = events(client, tools=[WEATHER], max_output_tokens=limit)
    assert told(found)["output"][-1]["arguments"].startswith('{"city": ')
    assert all(event["type"] != "response.function_call_arguments.done" for event in found)
    cut = both(client, tools=[WEATHER], max_output_tokens=limit)
    assert cut["output"][-1]["status"] == "incomplete"


def test_log_probabilities_where_they_are_asked_for(client: TestClient, says: Says) -> None:
    says(ANSWER)
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    found = both(client, include=include, top_logprobs=3)
    told = found["output"][1]["content"][0]["logprobs"]
    assert b"".join(bytes(entry["bytes"]) for entry in told).decode() == "Grüße!"
    assert all(len(entry["top_logprobs"]) == 3 for entry in told)
    assert found["top_logprobs"] == 3
    bare = both(client, include=include)["output"][1]["content"][0]["logprobs"]
    assert [entry["top_logprobs"] for entry in bare] == [[]] * len(told)
    assert both(client, include=[], top_logprobs=3)["output"][1]["content"][0]["logprobs"] == []


SUNNY = {
    "type": "object",
    "properties": {"sunny": {"type": "boolean"}},
    "required": ["sunny"],
    "additionalProperties": False,
}
LOOSE = f"{THOUGHT}<|channel|>final<|message|>It is.<|return|>"


def test_a_json_answer_is_held_to_its_schema(client: TestClient, says: Says) -> None:
    says(LOOSE)
    assert text_of(both(client)) == "It is."
    form = {"type": "json_schema", "name": "w", "schema": SUNNY, "strict": True}
    found = both(client, text={"format": form})
    assert json.loads(text_of(found)).keys() == {"sunny"}
    assert found["output"][0]["content"][0]["text"] == "Hm."  # which nothing holds
    assert found["text"] == {"format": form}
    found = both(client, text={"format": {"type": "json_object"}})
    assert isinstance(json.loads(text_of(found)), dict)


@pytest.mark.parametrize("strict", [True, False, None])
def test_arguments_of_a_strict_tool_are_held_to_its_schema(
    strict: bool | None, client: TestClient, says: Says
) -> None:
    says("<|channel|>commentary to=functions.f<|message|>It is!<|call|>")
    tool: dict[str, Any] = {"type": "function", "name": "f", "parameters": SUNNY}
    tool |= {} if strict is None else {"strict": strict}
    (call,) = both(client, tools=[tool])["output"]
    if strict:
        assert json.loads(call["arguments"]).keys() == {"sunny"}
    else:
        assert call["arguments"] == "It is!"  # as the model wrote them, no JSON


@pytest.mark.parametrize(
    ("choice", "may"), [("required", "ab"), ({"type": "function", "name": "b"}, "b")]
)
def test_a_call_can_be_required(choice: Any, may: str, client: TestClient, says: Says) -> None:
    says(LOOSE)
    tools = [
        {"type": "function", "name": name, "parameters": SUNNY, "strict": True} for name in "ab"
    ]
    found = both(client, tools=tools, tool_choice=choice)
    calls = [item for item in found["output"] if item["type"] == "function_call"]
    assert calls and "It is." not in text_of(found)  # a preamble at most
    for call in calls:
        assert call["name"] in may
        assert json.loads(call["arguments"]).keys() == {"sunny"}
    assert found["tool_choice"] == choice
    none = both(client, tools=tools, tool_choice="none")
    assert text_of(none) == "It is."


def test_effort_is_what_the_model_is_told(client: TestClient, says: Says) -> None:
    says(ANSWER)
    sizes = {}
    for asked, known in (("low", "low"), ("minimal", "low"), (None, "medium"), ("high", "high")):
        reasoning = {"effort": asked, "summary": "auto"}
        found = both(client, reasoning=reasoning)
        assert found["reasoning"] == {"effort": known, "summary": None}
        sizes[known] = found["usage"]["input_tokens"]
    assert len(set(sizes.values())) == 3  # a token a letter


def test_what_was_asked_for_is_told(client: TestClient, says: Says) -> None:
    says(ANSWER)
    asked = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "me",
        "truncation": "disabled",
        "store": False,
        "background": False,
    }
    found = both(client, **asked, service_tier="auto", unheard_of=[1], prompt_cache_key="k")
    assert {key: found[key] for key in asked} == asked
    assert found["tools"] == [] and found["tool_choice"] == "auto"
    bare = both(client, metadata=None, tools=None, tool_choice=None, text={}, instructions=None)
    assert bare["metadata"] == {} and bare["text"] == {"format": {"type": "text"}}


def test_half_a_character_is_told_as_it_was_sent(client: TestClient, says: Says) -> None:
    says(ANSWER)
    tool = {**WEATHER, "description": "\udfff"}
    found = both(client, "\ud83d", instructions="\ud800", tools=[tool])
    assert found["instructions"] == "\ud800"
    assert found["tools"][0]["description"] == "\udfff"
