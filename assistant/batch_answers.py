"""Requests of a batch file, asked of the server's own application: nothing goes around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain, islice
from typing import Any

from starlette.types import ASGIApp, Message

from gptoss_onnx.assistant.app import make_app
from gptoss_onnx.assistant.batch_file import Line, answered, refused
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.serving import make_service
from gptoss_onnx.runtimes.errors import UserError

_QUEUE = 1 << 20  # of the engine's: it is not what limits a batch
_PAUSES = (1.0, 10.0)  # seconds before a request is tried again that there was no room for
_NO_ROOM = (429, 503)

Write = Callable[[Sequence[bytes]], object]


@asynccontextmanager
async def batch_app(**options: Any) -> AsyncIterator[ASGIApp]:
    """The application of `gptoss serve` with these options, its only package loaded."""
    service = make_service(**options, queue=_QUEUE)
    try:
        models = list(service.models)
        if len(models) == 1:
            try:
                async with service.models.lend(models[0].id):
                    pass
            except ApiError as error:
                raise UserError(str(error.__cause__ or error)) from error
        yield make_app(service)
    finally:
        await service.close()


async def answer_here(lines: Iterator[Line], write: Write, options: dict[str, Any]) -> None:
    """In this process. A package is loaded only for something to ask of it."""
    first = next(lines, None)
    if first is not None:
        async with batch_app(**options) as app:
            await answer_all(app, chain([first], lines), at_once(options["rows"]), write)


def at_once(rows: int) -> int:
    """Requests under way: no row waits for one while answers are being written."""
    return 2 * rows


async def answer_all(app: ASGIApp, lines: Iterable[Line], count: int, write: Write) -> None:
    """`write` what is answered as it comes, `count` lines under way and no more of them read."""
    left = iter(lines)
    tasks: set[asyncio.Task[bytes]] = set()
    try:
        while True:
            more = islice(left, count - len(tasks))
            tasks |= {asyncio.create_task(answer(app, line)) for line in more}
            if not tasks:
                return
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(write, [task.result() for task in done])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer(app: ASGIApp, line: Line) -> bytes:
    """The line that answers `line`."""
    if line.fault is not None:
        return refused(line)
    for pause in (*_PAUSES, None):
        status, headers, body = await ask(app, line.url, line.body)
        if pause is None or status not in _NO_ROOM:
            break
        await asyncio.sleep(pause)
    return answered(line, status, headers["x-request-id"], json.loads(body))


async def ask(app: ASGIApp, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a POST, without a socket."""
    headers = {
        "host": "localhost",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
    asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    said: list[Message] = []

    async def receive() -> Message:
        if not asked:
            await asyncio.Event().wait()  # nobody goes away
        return asked.pop()

    async def send(message: Message) -> None:
        said.append(message)

    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in said[0]["headers"]}
    return said[0]["status"], found, b"".join(message.get("body", b"") for message in said[1:])
