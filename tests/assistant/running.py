"""A server on a socket of its own, in a thread of this process, and raw connections to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptoss_onnx.assistant.app import make_app
from gptoss_onnx.assistant.connections import http_protocol
from gptoss_onnx.assistant.security import Rules
from gptoss_onnx.assistant.serving import Server, make_service

PATIENCE = 120.0  # seconds until a test gives up: a replica of Ray takes 10 to start, alone


class Running:
    """`ask` and `raw` are its clients; `engine` is its one model's."""

    def __init__(self, server: Server, service: Any, port: int) -> None:
        self.server = server
        self.service = service
        self.port = port

    @property
    def engine(self) -> Any:
        (model,) = self.service.models
        return model.engine

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def raw(self, data: bytes, *, then: Callable[[socket.socket], None] | None = None) -> bytes:
        """Everything that is answered to `data` until the server closes."""
        with self.connect() as connection:
            try:
                connection.sendall(data)
                if then is not None:
                    then(connection)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has closed, and what it said may be lost
            return received(connection)

    def request(self, method: str, path: str, content: bytes = b"", headers: str = "") -> bytes:
        """A whole request that asks to close."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost:{self.port}\r\n{headers}"
        head += f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    def get(self, path: str) -> tuple[int, Any]:
        return parsed(self.raw(self.request("GET", path)))

    def post(self, path: str, content: Any) -> tuple[int, Any]:
        return parsed(self.raw(self.request("POST", path, json.dumps(content).encode())))


def received(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    data = b""
    try:
        while more := connection.recv(1 << 16):
            data += more
    except ConnectionResetError:
        pass
    return data


def parsed(answer: bytes) -> tuple[int, Any]:
    """Status and JSON of one answer, the first."""
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.JSONDecoder().raw_decode(content.decode())[0]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


@contextmanager
def running(
    folder: Path, data: Path, *, protocol: Any = None, rules: Rules | None = None, **options: Any
) -> Iterator[Running]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    rules = rules or Rules(port)
    started = threading.Event()
    service = None
    found: list[Running] = []

    def serve() -> None:
        async def main() -> None:
            nonlocal service
            service = make_service(package=folder, data=data, **options)
            app = make_app(service, rules)
            server = Server(app, service, "", lambda line: None)
            if protocol is not None:
                server.config.http_protocol_class = http_protocol(protocol)
                server.config.http = server.config.http_protocol_class
            found.append(Running(server, service, port))
            started.set()
            await server.serve([listening])

        asyncio.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait()
    try:
        until(lambda: found[0].server.started)
        yield found[0]
    finally:
        found[0].server.should_exit = True
        thread.join()
