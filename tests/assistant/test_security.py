"""Hosts, origins, keys and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from gptoss_onnx.assistant.security import Rules, is_loopback
from gptoss_onnx.assistant.users import Users
from tests.assistant.asking import CHAT, body
from tests.assistant.conftest import Says, Serve

ANSWER = "<|channel|>final<|message|>a<|return|>"


def get(client: TestClient, **headers: str) -> Any:
    return client.get("/v1/models", headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("LOCALHOST:8080", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("localhost", 200),
        ("[::1]", 200),
        ("localhost:9", 421),
        ("evil.example:8080", 421),
        ("localhost.evil.example:8080", 421),
        ("localhost:8080.evil.example", 421),
        ("evil.example@localhost:8080", 421),
        ("127.0.0.2:8080", 421),
        ("::1", 421),
        ("", 421),
        ("mine", 200),
        ("mine:1", 200),
        ("other:5", 200),
        ("other", 421),
        ("other:6", 421),
    ],
)
def test_hosts(host: str, status: int, serve: Serve) -> None:
    client = serve(rules=Rules(8080, allow_hosts=["mine", "other:5"]))
    answer = get(client, host=host)
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["code"] == "host_not_allowed"


def test_any_host_if_asked(serve: Serve) -> None:
    assert get(serve(rules=Rules(8080, allow_hosts=["*"])), host="any.thing").status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8080", 200),
        ("http://localhost:3000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("https://good.example", 200),
        ("https://good.example.evil", 403),
    ],
)
def test_origins(origin: str, status: int, serve: Serve) -> None:
    client = serve(rules=Rules(8080, cors_origins=["https://good.example"]))
    answer = get(client, origin=origin)
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["code"] == "origin_not_allowed"
    shown = origin if origin == "https://good.example" else None
    assert answer.headers.get("access-control-allow-origin") == shown


def test_no_cors_unless_asked_for(serve: Serve) -> None:
    ask = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST",
           "Access-Control-Request-Headers": "authorization, content-type"}  # fmt: skip
    answer = serve(rules=Rules()).options(CHAT, headers=ask)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = serve(rules=Rules(cors_origins=["https://good.example"])).options(CHAT, headers=ask)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://good.example"
    assert "authorization" in answer.headers["access-control-allow-headers"]


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    with Users(tmp_path / "users") as made:
        yield made


def test_keys(serve: Serve, users: Users, says: Says) -> None:
    says(ANSWER)
    key, revoked = users.add("eva"), users.add("max")
    users.revoke("max")
    client = serve(rules=Rules(), users=users)
    for given in ("", key, f"Basic {key}", "Bearer", f"Bearer {key}x", f"Bearer {revoked}",
                  "Bearer \u00ff", "Bearer " + "x" * 10_000):  # fmt: skip
        answer = get(client, authorization=given.encode("latin-1"))  # type: ignore[arg-type]
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert get(client).status_code == 401
    assert client.get("/health").status_code == 200
    for path in ("/metrics", "/openapi.json", "/v1/nothing"):
        assert client.get(path).status_code == 401
    for scheme in ("Bearer", "bearer"):
        assert get(client, authorization=f"{scheme} {key}").status_code == 200


def test_without_its_database_nobody_is_let_in(serve: Serve, users: Users) -> None:
    key = users.add("eva")
    client = serve(rules=Rules(), users=users)
    assert get(client, authorization=f"Bearer {key}").status_code == 200
    users.close()
    assert get(client, authorization=f"Bearer {key}").status_code == 503


def test_bodies_have_a_limit(serve: Serve, says: Says) -> None:
    says(ANSWER)
    client = serve(rules=Rules(max_body=1000))

    def pieces(size: int) -> Iterator[bytes]:
        yield from (b" " * 100 for _ in range(size // 100))

    assert client.post(CHAT, json=body()).status_code == 200
    for content in (b" " * 1001, pieces(1100)):
        answer = client.post(CHAT, content=content)
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["error"]["message"]
    for length in ("-1", "1e3", "9" * 5000, "\u00b2"):
        headers = {"content-length": length.encode("latin-1")}
        answer = client.post(CHAT, content=b"{}", headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 413
    assert client.post(CHAT, content=pieces(900)).status_code == 400


def test_headers_have_a_limit(client: TestClient) -> None:
    assert get(client, x="a" * 40_000).status_code == 431


def test_loopback() -> None:
    assert [h for h in ("localhost", "127.0.0.1", "127.9.9.9", "::1") if not is_loopback(h)] == []
    assert [h for h in ("0.0.0.0", "::", "10.0.0.1", "example.org", "") if is_loopback(h)] == []


def test_no_websockets(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/v1/models"):
        pass
    assert closed.value.code == 1008
