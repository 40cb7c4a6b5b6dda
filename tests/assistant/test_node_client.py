"""The official OpenAI client for Node, unchanged, against the server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.assistant.conftest import MODEL, Says
from tests.assistant.running import running
from tests.installed import from_npm

CLIENT = "6.49.0"  # the last for Node 20
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
CALL = (
    THOUGHT + "<|channel|>commentary to=functions.get_weather <|constrain|>json"
    '<|message|>{"city": "Ulm"}<|call|>'
)
ANSWER = THOUGHT + "<|channel|>final<|message|>It is sunny.<|return|>"


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here")
def test_it_talks_calls_tools_and_streams(package_folder: Path, tmp_path: Path, says: Says) -> None:
    says(CALL, CALL, CALL, ANSWER)
    with running(package_folder, tmp_path) as server:
        command = ["node", Path(__file__).parent / "client.mjs", from_npm("openai", CLIENT)]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{server.port}/v1"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["model"] == MODEL
    for message in (got["whole"]["message"], got["streamed"]):
        (call,) = message["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Ulm"}
    assert got["whole"]["message"]["reasoning"] == "Hm."  # its stream helper knows no such field
    assert got["whole"]["finish_reason"] == "tool_calls"
    assert got["usage"]["total_tokens"] > got["usage"]["prompt_tokens"] > 0
    assert got["deltas"] > 3
    assert (got["asked"], got["answer"]) == ([{"city": "Ulm"}], "It is sunny.")
    assert (got["text"], got["retrieved"], got["gone"]) == ("It is sunny.", "It is sunny.", 404)
    assert got["events"][0] == "response.created"
    assert got["events"][-1] == "response.completed"
    assert "response.reasoning_text.delta" in got["events"]
    status, kind, message = got["refused"]
    assert (status, kind) == (400, "invalid_request_error")
    assert "image" in message
