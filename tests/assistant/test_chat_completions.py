"""Chat completions: what each parameter does, the same streamed or not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from gptoss_onnx.runtimes.package import Package
from tests.assistant.asking import CHAT, WEATHER, body, chat, chunks, streamed, without_ids
from tests.assistant.conftest import MODEL, Says
from tests.runtimes.scripted import encode

THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ANSWER = f"{THOUGHT}<|channel|>final<|message|>Grüße!<|return|>"
CALL = (
    f"{THOUGHT}<|channel|>commentary to=functions.get_weather <|constrain|>json"
    '<|message|>{"city": "Ulm"}<|call|>'
)


def both(client: TestClient, **others: Any) -> list[dict[str, Any]]:
    """The choices, found equal streamed and not."""
    whole = without_ids(chat(client, **others))
    assert whole == without_ids(streamed(client, **others))
    return whole


def test_an_answer_with_its_reasoning(client: TestClient, says: Says) -> None:
    says(ANSWER)
    answer = chat(client)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == MODEL
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant", "content": "Grüße!", "refusal": None, "reasoning": "Hm."
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]  # fmt: skip
    assert both(client)[0]["message"]["content"] == "Grüße!"


def test_usage_counts_what_was_reused_and_thought(
    client: TestClient, says: Says, package: Package
) -> None:
    says(ANSWER)
    first, again = chat(client)["usage"], streamed(client)["usage"]
    tokens = len(encode(package, ANSWER))
    assert first["completion_tokens"] == again["completion_tokens"] == tokens
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert again["prompt_tokens_details"]["cached_tokens"] == first["prompt_tokens"] - 1
    thought = first["completion_tokens_details"]["reasoning_tokens"]
    assert thought == len(encode(package, THOUGHT.partition("<|end|>")[0]))
    assert first["total_tokens"] == first["prompt_tokens"] + tokens


def test_a_stream_has_usage_only_when_asked(client: TestClient, says: Says) -> None:
    says(ANSWER)
    events = chunks(client.post(CHAT, json=body(stream=True)).text)
    assert all("usage" not in event for event in events)
    assert all(len(event["choices"]) == 1 for event in events)
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_a_call(client: TestClient, says: Says) -> None:
    says(CALL)
    found = both(client, tools=[WEATHER])[0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["tool_calls"] == [
        {
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Ulm"}'},
        }
    ]
    assert chat(client)["choices"][0]["message"]["content"] is None


def test_arguments_come_as_they_are_written(client: TestClient, says: Says) -> None:
    says(CALL)
    events = chunks(client.post(CHAT, json=body(stream=True, tools=[WEATHER])).text)
    deltas = [c["delta"] for e in events for c in e["choices"] if "tool_calls" in c["delta"]]
    assert len(deltas) == len('{"city": "Ulm"}')  # a token a letter
    assert [d["tool_calls"][0]["index"] for d in deltas] == [0] * len(deltas)
    assert sum("id" in d["tool_calls"][0] for d in deltas) == 1


TWO = (
    "<|channel|>commentary<|message|>Let me check.<|end|><|start|>assistant"
    "<|channel|>commentary to=functions.get_weather<|message|>{}<|end|><|start|>assistant"
    '<|channel|>commentary to=functions.get_weather<|message|>{"city": 1}<|call|>'
)


def test_several_calls_at_once_and_a_preamble(client: TestClient, says: Says) -> None:
    says(TWO)
    answer = chat(client, tools=[WEATHER])
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == 2
    found = both(client, tools=[WEATHER])[0]["message"]
    assert found["content"] == "Let me check."
    assert [c["function"]["arguments"] for c in found["tool_calls"]] == ["{}", '{"city": 1}']


def test_one_call_where_only_one_is_wanted(client: TestClient, says: Says) -> None:
    says(TWO)
    found = both(client, tools=[WEATHER], parallel_tool_calls=False)[0]
    assert [c["function"]["arguments"] for c in found["message"]["tool_calls"]] == ["{}"]
    assert found["finish_reason"] == "tool_calls"


def test_a_call_that_was_cut_is_no_finished_one(client: TestClient, says: Says) -> None:
    says(CALL.partition(' "Ulm"')[0])
    found = both(client, tools=[WEATHER], max_tokens=len(THOUGHT))[0]
    assert found["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        ("B", "A"),
        (["x", "DE", "CD"], "ABBC"[:3]),
        ("ABBCDEF!", "ABBCDEF"),
        ("ABBCDEF", ""),
        (["FG", "EFG"], "ABBCDEF"),
        ("Hm", "ABBCDEF"),
        ("", "ABBCDEF"),
        ([], "ABBCDEF"),
    ],
)
def test_stop_ends_the_answer_alone(
    stop: Any, content: str, client: TestClient, says: Says
) -> None:
    says(f"{THOUGHT}<|channel|>final<|message|>ABBCDEF<|return|>")
    found = both(client, stop=stop)[0]
    assert found["message"]["content"] == content
    assert found["message"]["reasoning"] == "Hm."
    assert found["finish_reason"] == "stop"


def test_a_stop_cancels_what_would_follow(client: TestClient, says: Says) -> None:
    says("<|channel|>final<|message|>ab" + "c" * 1000)
    assert chat(client, stop="bc")["usage"]["completion_tokens"] < 500


def test_several_replies_to_one_prompt(client: TestClient, says: Says) -> None:
    texts = [f"<|channel|>final<|message|>{letter}<|return|>" for letter in "abc"]
    says(*texts)
    answer = chat(client, n=3)
    assert [c["message"]["content"] for c in answer["choices"]] == ["a", "b", "c"]
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    single = chat(client)["usage"]
    assert answer["usage"]["prompt_tokens"] == single["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 3 * single["completion_tokens"]
    says(*texts)
    assert [c["message"]["content"] for c in streamed(client, n=3)["choices"]] == ["a", "b", "c"]


def test_a_seed_repeats_a_reply_and_tells_several_apart(client: TestClient) -> None:
    options = {"n": 2, "seed": -5, "temperature": 1.5, "max_tokens": 12}
    first, again = chat(client, **options), chat(client, **options)
    assert without_ids(first) == without_ids(again)
    assert first["choices"][0]["message"] != first["choices"][1]["message"]
    assert without_ids(chat(client, **{**options, "seed": 5})) != without_ids(again)


def test_log_probabilities_of_content_alone(client: TestClient, says: Says) -> None:
    says(ANSWER)
    found = both(client, logprobs=True, top_logprobs=3)[0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in found).decode() == "Grüße!"
    for entry in found:
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] <= entry["top_logprobs"][0]["logprob"]
    bare = both(client, logprobs=True)[0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in bare] == [[]] * len(found)
    assert both(client)[0]["logprobs"] is None


def test_log_probabilities_stop_with_the_text(client: TestClient, says: Says) -> None:
    says("<|channel|>final<|message|>ABCDEF<|return|>")
    found = both(client, logprobs=True, stop="DE")[0]
    assert [entry["token"] for entry in found["logprobs"]["content"]] == list("ABC")


def test_max_tokens_has_two_names_and_no_default(
    client: TestClient, says: Says, package: Package
) -> None:
    says("<|channel|>final<|message|>" + "word " * 900)
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(client, **{name: 9})
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 9
    answer = chat(client)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == package.manifest.context_length


def test_a_reply_of_reasoning_alone_says_that_it_was_cut(client: TestClient, says: Says) -> None:
    says(ANSWER)
    found = both(client, max_tokens=6)[0]
    assert found["finish_reason"] == "length"
    assert found["message"]["content"] == ""
    assert "Hm.".startswith(found["message"].get("reasoning", ""))


def test_a_timeout_cuts_a_reply(serve: Any, says: Says) -> None:
    says("<|channel|>final<|message|>" + "word " * 390)
    found = both(serve(timeout=0.000001))[0]
    assert found["finish_reason"] == "length"
    assert found["message"]["content"] == ""


SUNNY = {
    "type": "object",
    "properties": {"sunny": {"type": "boolean"}},
    "required": ["sunny"],
    "additionalProperties": False,
}
SUNNY_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "w", "schema": SUNNY, "strict": True},
}
LOOSE = f"{THOUGHT}<|channel|>final<|message|>It is.<|return|>"


def test_a_json_answer_is_held_to_its_schema(client: TestClient, says: Says) -> None:
    says(LOOSE)
    assert both(client)[0]["message"]["content"] == "It is."
    found = both(client, response_format=SUNNY_FORMAT)[0]
    assert json.loads(found["message"]["content"]).keys() == {"sunny"}
    assert found["message"]["reasoning"] == "Hm."  # which nothing holds
    assert found["finish_reason"] == "stop"
    text = both(client, response_format={"type": "json_object"})[0]["message"]["content"]
    assert isinstance(json.loads(text), dict)


def test_the_model_is_told_of_the_schema(client: TestClient, says: Says, package: Package) -> None:
    says(LOOSE)
    bare, told = chat(client), chat(client, response_format=SUNNY_FORMAT)
    assert told["usage"]["prompt_tokens"] > bare["usage"]["prompt_tokens"] + len(json.dumps(SUNNY))


@pytest.mark.parametrize("strict", [True, False])
def test_arguments_of_a_strict_tool_are_held_to_its_schema(
    strict: bool, client: TestClient, says: Says
) -> None:
    says("<|channel|>commentary to=functions.f<|message|>It is!<|call|>")
    tool = {"type": "function", "function": {"name": "f", "parameters": SUNNY, "strict": strict}}
    found = both(client, tools=[tool])[0]["message"]["tool_calls"][0]["function"]["arguments"]
    if strict:
        assert json.loads(found).keys() == {"sunny"}
    else:
        assert found == "It is!"  # as the model wrote them, no JSON


@pytest.mark.parametrize(
    ("choice", "may"),
    [("required", "ab"), ({"type": "function", "function": {"name": "b"}}, "b")],
)
def test_a_call_can_be_required(choice: Any, may: str, client: TestClient, says: Says) -> None:
    says(LOOSE)
    tools = [{"type": "function", "function": {"name": name, "parameters": SUNNY, "strict": True}}
             for name in "ab"]  # fmt: skip
    found = both(client, tools=tools, tool_choice=choice)[0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["content"] != "It is."  # a preamble at most
    for call in found["message"]["tool_calls"]:
        assert call["function"]["name"] in may
        assert json.loads(call["function"]["arguments"]).keys() == {"sunny"}


def test_a_call_can_be_forbidden(client: TestClient, says: Says) -> None:
    says(CALL)
    assert both(client, tools=[WEATHER])[0]["finish_reason"] == "tool_calls"
    found = both(client, tools=[WEATHER], tool_choice="none", max_tokens=200)[0]
    assert "tool_calls" not in found["message"]


def test_commentary_is_no_part_of_a_json_answer(client: TestClient, says: Says) -> None:
    preamble = "<|channel|>commentary<|message|>Sure:<|end|><|start|>assistant"
    says(f'{preamble}<|channel|>final<|message|>{{"a": 1}}<|return|>')
    found = both(client, response_format={"type": "json_object"})[0]["message"]
    assert json.loads(found["content"]) == {"a": 1}
    assert found["reasoning"] == "Sure:"


def test_what_others_ignore_is_ignored(client: TestClient, says: Says) -> None:
    says(ANSWER)
    extra = {"user": "me", "metadata": {"a": "b"}, "store": False, "unheard_of": [1]}
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "functions": None}
    assert both(client, **extra, **neutral)[0]["message"]["content"] == "Grüße!"
