"""Replies in the format and out of it through HTTP: what was meant, the same streamed or not."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from gptoss_onnx.runtimes.package import Package
from tests.assistant.asking import WEATHER, chat, streamed, without_ids
from tests.assistant.conftest import Says
from tests.runtimes.replies import REPLIES, TOOLS
from tests.runtimes.scripted import encode

_STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
TOOL_PARAMS = [
    {**WEATHER, "function": {"name": name, "parameters": {"type": "object"}}} for name in TOOLS
]


def expected(name: str) -> dict[str, Any]:
    said = [message for message in REPLIES[name][1] if message.role == "assistant"]
    talk = [message for message in said if not message.is_call]
    reasoning = [message.content for message in talk if message.channel == "analysis"]
    shown = [message.content for message in talk if message.channel != "analysis"]
    calls = [
        {
            "type": "function",
            "function": {
                "name": str(message.recipient).removeprefix("functions."),
                "arguments": message.content,
            },
        }
        for message in said
        if message.is_call
    ]
    found: dict[str, Any] = {"role": "assistant", "refusal": None, "content": "\n\n".join(shown)}
    if reasoning:
        found["reasoning"] = "\n\n".join(reasoning)
    return found | ({"tool_calls": calls} if calls else {})


@pytest.mark.parametrize(
    "name", [n for n, (text, _) in REPLIES.items() if "startoftext" not in text]
)
def test_each_is_what_was_meant(
    name: str, client: TestClient, says: Says, package: Package
) -> None:
    text = REPLIES[name][0] or "<|return|>"
    tokens = encode(package, text)
    says(text)
    complete = any(text.endswith(stop) for stop in _STOPS)
    limit = {} if complete else {"max_tokens": len(tokens)}
    whole = without_ids(chat(client, tools=TOOL_PARAMS, **limit))
    parts = without_ids(streamed(client, tools=TOOL_PARAMS, **limit))
    assert whole == parts
    assert whole[0]["message"] == expected(name)
    calls = "tool_calls" in whole[0]["message"]
    reason = "length" if limit else "tool_calls" if calls else "stop"
    assert whole[0]["finish_reason"] == reason
