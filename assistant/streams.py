"""Responses that are written as they come: server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator

from starlette.types import Receive, Scope, Send

from gptoss_onnx.assistant.errors import api_error
from gptoss_onnx.assistant.service import Exchange

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # or nginx keeps them until there are more
]


def one_write(events: Iterable[bytes]) -> Iterator[bytes]:
    """All of `events` together; if making one of them fails, those before it first."""
    data = b""
    try:
        for event in events:
            data += event
    except Exception:
        yield data
        raise
    yield data


class EventStream:
    """Sends `events` of `exchange`, which it closes, as an ASGI application.

    What goes wrong on the way is the last event: the status has been sent.
    """

    def __init__(self, exchange: Exchange, events: AsyncIterator[bytes]) -> None:
        self._exchange = exchange
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            try:
                async for data in self._events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except OSError:  # the client went away
                return
            except Exception as error:
                data = api_error(error).event()
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self._exchange.close()
