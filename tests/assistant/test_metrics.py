"""Figures, health, and the usage log: each request leaves one entry."""

from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from gptoss_onnx.assistant.security import Rules
from gptoss_onnx.assistant.usage_log import Entry, UsageLog
from gptoss_onnx.assistant.users import Users
from tests.assistant.asking import CHAT, body, chat, streamed
from tests.assistant.conftest import MODEL, Says, Serve

ANSWER = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>a"


def entries(tmp_path: Path) -> list[Entry]:
    with UsageLog(tmp_path / "data") as log:
        return list(log.entries())


def value(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    found = [line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")]
    assert len(found) == 1, name
    return float(found[0])


def test_requests_and_tokens_are_counted(client: TestClient, says: Says) -> None:
    says(ANSWER)
    usage = chat(client)["usage"]
    streamed(client)
    client.post(CHAT, json={})
    client.get("/v1/nothing")
    client.get(f"/v1/models/{MODEL}")
    assert value(client, f'gptoss_requests_total{{endpoint="{CHAT}",status="200"}}') == 2
    assert value(client, f'gptoss_requests_total{{endpoint="{CHAT}",status="400"}}') == 1
    assert value(client, 'gptoss_requests_total{endpoint="other",status="404"}') == 1
    path = "/v1/models/{model:path}"
    assert value(client, f'gptoss_requests_total{{endpoint="{path}",status="200"}}') == 1
    for kind, count in (
        ("prompt", 2 * usage["prompt_tokens"]),
        ("completion", 2 * usage["completion_tokens"]),
        ("cached", usage["prompt_tokens"] - 1),
        ("reasoning", 2 * usage["completion_tokens_details"]["reasoning_tokens"]),
    ):
        assert value(client, f'gptoss_tokens_total{{kind="{kind}",model="{MODEL}"}}') == count
    assert value(client, f'gptoss_first_token_seconds_count{{model="{MODEL}"}}') == 2
    assert value(client, f'gptoss_token_seconds_count{{model="{MODEL}"}}') == 2
    assert value(client, f'gptoss_rows_active{{model="{MODEL}"}}') == 0
    assert value(client, f'gptoss_rows_waiting{{model="{MODEL}"}}') == 0
    assert value(client, f'gptoss_model_loads_total{{model="{MODEL}"}}') == 1


def test_health(client: TestClient) -> None:
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "loaded": []})
    client.service.shut()  # type: ignore[attr-defined]
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "shutting down")
    assert client.post(CHAT, json=body()).status_code == 503


def test_each_request_leaves_one_entry(serve: Serve, says: Says, tmp_path: Path) -> None:
    says(ANSWER)
    with Users(tmp_path / "users") as users:
        key = users.add("eva")
        client = serve(rules=Rules(), users=users)
        client.headers["Authorization"] = f"Bearer {key}"
        answer = client.post(CHAT, json=body())
        stream = client.post(CHAT, json=body(stream=True))
        assert stream.status_code == 200
    usage = answer.json()["usage"]
    first, second = entries(tmp_path)
    assert (first.user, first.endpoint, first.model) == ("eva", CHAT, MODEL)
    assert first.request_id == answer.headers["x-request-id"]
    assert first.prompt_tokens == usage["prompt_tokens"]
    assert first.completion_tokens == usage["completion_tokens"]
    assert first.reasoning_tokens == usage["completion_tokens_details"]["reasoning_tokens"]
    assert (first.finish_reason, second.finish_reason) == ("stop", "stop")
    assert (first.prompt, first.answer) == (None, None)
    assert second.cached_tokens > 0


def test_texts_are_kept_only_if_asked(serve: Serve, says: Says, tmp_path: Path) -> None:
    says(ANSWER)
    chat(serve(log_text=True))
    (entry,) = entries(tmp_path)
    assert (entry.prompt, entry.answer) == ("Hi?", "Hm.a")
