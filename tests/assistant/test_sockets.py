"""The server on a real socket: what its HTTP readers refuse, clients that are slow or go away."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gptoss_onnx.assistant import connections
from gptoss_onnx.assistant.security import Rules
from tests.assistant.asking import CHAT, body
from tests.assistant.conftest import MODEL, Says
from tests.assistant.running import Running, parsed, received, running, until

ENDLESS = "<|channel|>final<|message|>" + "word " * 400
ANSWER = "<|channel|>final<|message|>a<|return|>"
PROTOCOLS = [H11Protocol, HttpToolsProtocol]


@pytest.fixture(scope="module", params=PROTOCOLS)
def server(
    request: pytest.FixtureRequest, package_folder: Path, tmp_path_factory: Any
) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("data")
    with running(package_folder, data, protocol=request.param) as found:
        yield found


def statuses(answer: bytes) -> list[int]:
    return [int(line.split()[1]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1")]


def test_it_answers(server: Running, says: Says) -> None:
    says(ANSWER)
    assert server.get("/health") == (200, {"status": "ok", "loaded": [MODEL]})
    status, answer = server.post(CHAT, body())
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "a"


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: -5\r\n",
        "X: a\x00b\r\n",
        "X\r\n",
        " folded: a\r\n",
    ],
)
def test_requests_that_can_be_read_in_two_ways(head: str, server: Running) -> None:
    """Refused, and what stands behind them is never taken for a request of its own."""
    data = f"POST {CHAT} HTTP/1.1\r\nHost: localhost:{server.port}\r\n{head}\r\n".encode()
    answer = server.raw(data + b"0\r\n\r\n" + SMUGGLED)
    # One reader folds a line into the Host before it, which then is no Host of ours.
    assert statuses(answer)[0] in (400, 421, 501)
    assert 200 not in statuses(answer)
    error = parsed(answer)[1]["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert server.get("/health")[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/9.9\r\n\r\n", None),
        (b"hello\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", None),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", 421),
        (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 421),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n"
         b"Connection: close\r\n\r\n", None),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n"
         b"Connection: close\r\n\r\n", 403),
        (b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: evil.example\r\n"
         b"Connection: close\r\n\r\n", 421),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
    ],
)  # fmt: skip
def test_requests_that_are_none_or_anothers(
    data: bytes, status: int | None, server: Running
) -> None:
    answer = server.raw(data)
    assert statuses(answer)[0] in ([status] if status else [400, 421])
    assert server.get("/health")[0] == 200


def test_a_huge_body_is_refused_before_it_comes(server: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
    answer = server.raw(f"{head}Content-Length: 1000000000000\r\n\r\n".encode())
    assert parsed(answer)[0] == 413


def test_an_endless_body_is_refused(server: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"

    def go_on(connection: socket.socket) -> None:
        for _ in range(40):  # of a megabyte each
            connection.sendall(piece)
        pytest.fail("all of it was taken")

    answer = server.raw(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), then=go_on)
    assert statuses(answer) in ([413], [])  # which a client that goes on writing may not see


def test_endless_headers_are_refused(server: Running) -> None:
    def go_on(connection: socket.socket) -> None:
        for _ in range(10_000):
            connection.sendall(b"X: " + b"a" * 1000 + b"\r\n")
        pytest.fail("all of it was taken")

    answer = server.raw(b"GET / HTTP/1.1\r\n", then=go_on)
    assert statuses(answer) in ([400], [431], [])
    assert server.get("/health")[0] == 200


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_slow_clients_are_let_go_and_disturb_nobody(
    protocol: Any,
    package_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: Says,
) -> None:
    says(ANSWER)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    rules = Rules(body_seconds=0.3)
    with running(package_folder, tmp_path, protocol=protocol, rules=rules) as server:
        slow = [server.connect() for _ in range(50)]
        for place, connection in enumerate(slow):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "[: place * 2])
        body_lacks = server.connect()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
        body_lacks.sendall(head.encode())
        assert server.post(CHAT, body())[0] == 200
        assert all(received(connection) == b"" for connection in slow)
        assert parsed(received(body_lacks))[0] == 408
        for connection in (*slow, body_lacks):
            connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_reply(stream: bool, server: Running, says: Says) -> None:
    says(ENDLESS)
    with server.connect() as connection:
        content = json.dumps(body(stream=stream, n=4)).encode()
        connection.sendall(server.request("POST", CHAT, content))
        until(lambda: server.engine.active == 4)
        if stream:
            assert connection.recv(10)
    before = server.engine.active
    until(lambda: server.engine.active + server.engine.waiting == 0)
    assert before <= 4
    says(ANSWER)
    assert server.post(CHAT, body())[0] == 200


def test_one_who_does_not_read_holds_up_nobody(server: Running, says: Says) -> None:
    says(ENDLESS)
    with server.connect() as connection:
        content = json.dumps(body(stream=True, n=16)).encode()
        connection.sendall(server.request("POST", CHAT, content))
        until(lambda: server.engine.active > 0)
        says(ANSWER)
        assert server.post(CHAT, body())[0] == 200


def test_the_end_of_a_server_is_the_end_of_its_streams(
    package_folder: Path, tmp_path: Path, says: Says
) -> None:
    says(ENDLESS)
    answers: list[bytes] = []
    with running(package_folder, tmp_path) as server:
        content = json.dumps(body(stream=True)).encode()
        asked = threading.Thread(
            target=lambda: answers.append(server.raw(server.request("POST", CHAT, content)))
        )
        asked.start()
        until(lambda: server.engine.active == 1)
    asked.join()
    assert b'"code": "cancelled"' in answers[0]
    assert answers[0].endswith(b"0\r\n\r\n")  # the whole of it was sent
