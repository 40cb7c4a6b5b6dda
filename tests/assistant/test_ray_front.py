"""What of the servers on Ray needs no cluster to be tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.serve.exceptions import BackPressureError
from starlette.testclient import TestClient

from gptoss_onnx.assistant import ray_serve
from gptoss_onnx.assistant.choice import TurnUsage
from gptoss_onnx.assistant.conversation_key import conversation_key
from gptoss_onnx.assistant.metrics import Metrics
from gptoss_onnx.assistant.ray_metrics import joined
from gptoss_onnx.assistant.ray_serve import Arguments, application, front_app
from gptoss_onnx.assistant.users import Users
from gptoss_onnx.runtimes.errors import UserError


def _key(**content: Any) -> str:
    return conversation_key(json.dumps(content).encode())


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


SYSTEM, FIRST = _turn("system", "Be brief."), _turn("user", "Hi?")
LATER = [_turn("assistant", "Hello."), _turn("user", "And?")]


def test_each_turn_of_a_conversation_has_its_key() -> None:
    key = _key(model="m", messages=[SYSTEM, FIRST])
    assert len(key) == 64
    assert _key(messages=[SYSTEM, FIRST, *LATER], temperature=1) == key
    assert _key(messages=[SYSTEM, LATER[1]]) != key
    assert _key(messages=[FIRST]) != key


def test_each_turn_of_the_responses_api_has_its_key() -> None:
    key = _key(input="Hi?", instructions="Be brief.")
    assert _key(input=[FIRST, *LATER], instructions="Be brief.") == key
    assert _key(input="Hi?") not in ("", key)


def test_a_prompt_that_grows_has_its_key() -> None:
    assert _key(prompt="x" * 300) == _key(prompt="x" * 300 + "y") != _key(prompt="y" * 300)
    assert _key(prompt=["x" * 300]) == _key(prompt="x" * 300)
    assert _key(prompt=[1] * 80) == _key(prompt=[[1] * 90]) != _key(prompt=[2] * 80)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b"\xff", b'{"messages": 1}', b'{"prompt": []}', b"[" * 100_000],
)
def test_what_begins_with_nothing_has_no_key(body: bytes) -> None:
    assert conversation_key(body) == ""


@pytest.mark.parametrize(
    "messages", [[1], [None, {}], [{"role": []}], ["\ud800"], [{"role": "user", "content": {}}]]
)
def test_no_conversation_is_too_strange(messages: Any) -> None:
    assert _key(messages=messages)


def test_without_keys_only_its_machine_is_answered() -> None:
    app = front_app(Arguments(package=Path("none")), None)
    address = "http://localhost:8000"
    with TestClient(app, base_url=address, client=("127.0.0.1", 5)) as client:
        assert client.get("/health").json() == {"status": "ok"}
        foreign = client.get("/health", headers={"host": "attacker.example"})
        assert foreign.status_code == 421
        page = client.get("/health", headers={"origin": "http://attacker.example"})
        assert page.status_code == 403
    with TestClient(app, base_url=address, client=("192.0.2.7", 5)) as client:
        answer = client.get("/health")
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "needs_keys"


def test_with_keys_all_who_have_one_are_answered(tmp_path: Path) -> None:
    with Users(tmp_path) as users:
        users.add("anna")
    options = Arguments(package=Path("none"), data=tmp_path, api_keys=True)
    app = front_app(options, None)
    with TestClient(app, base_url="http://localhost:8000", client=("192.0.2.7", 5)) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        wrong = client.get("/v1/models", headers={"authorization": "Bearer sk-wrong"})
        assert wrong.status_code == 401


def test_a_body_that_is_too_large_is_refused() -> None:
    app = front_app(Arguments(package=Path("none")), None)
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 5)) as client:
        answer = client.post("/v1/completions", content=(bytes(1 << 20) for _ in range(20)))
        assert answer.status_code == 413


def test_a_full_queue_is_told_as_the_servers_own() -> None:
    told = ray_serve._told(BackPressureError(num_queued_requests=1, max_queued_requests=1))
    assert (told.status, told.code) == (429, "queue_full")
    assert "Retry-After" in told.headers


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({}, "package: Field required"),
        ({"package": "p", "replicas": "0"}, "replicas"),
        ({"package": "p", "replica": "2"}, "replica: Extra"),
    ],
)
def test_wrong_arguments_are_told(args: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        application(args)


def test_arguments_come_as_texts_too() -> None:
    given = {"package": "p", "replicas": "2", "api_keys": "true", "allow_host": "a.example,b"}
    options = Arguments.model_validate(given)
    assert options.package == Path("p").absolute()
    assert (options.replicas, options.api_keys) == (2, True)
    assert options.allow_host == ["a.example", "b"]


def test_figures_of_all_replicas_are_one_page() -> None:
    pages = []
    for count in (1, 2):
        metrics = Metrics()
        metrics.answered("m", TurnUsage(prompt_tokens=10 * count), 0.2, None)
        pages.append((f"r{count}", metrics.text()))
    page = joined(pages).decode()
    found = {
        (family.name, sample.labels["replica"], sample.labels.get("kind")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name in ("gptoss_tokens_total", "gptoss_first_token_seconds_count")
    }
    assert found["gptoss_tokens", "r1", "prompt"] == 10
    assert found["gptoss_tokens", "r2", "prompt"] == 20
    assert found["gptoss_first_token_seconds", "r2", None] == 1
    assert page.count("# TYPE gptoss_tokens_total counter") == 1
