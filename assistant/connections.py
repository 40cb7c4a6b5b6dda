"""uvicorn's HTTP protocols, with an end to requests that never get as far as their headers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_SECONDS = 20.0
HEADER_BYTES = 64 << 10


def http_protocol(protocol: Any = AutoHTTPProtocol) -> type[asyncio.Protocol]:
    """`protocol`, uvicorn's own for h11 or httptools, whose clients must send headers in time."""

    class Patient(protocol):  # type: ignore[misc]
        _head = 0  # bytes of a request that is not begun yet
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            if self._answering():  # the body, or the next request's beginning
                super().data_received(data)
                return
            self._head += len(data)
            super().data_received(data)
            if self._answering():
                self._head = 0
                self._forget()
            elif self._head > HEADER_BYTES:
                self.send_400_response("The headers are too large.")
            else:
                self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """As everything that is no 2xx, in OpenAI's shape."""
            if self.transport.is_closing():
                return
            error = {"message": msg, "type": "invalid_request_error", "param": None, "code": None}
            body = json.dumps({"error": error}).encode()
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            self.transport.close()

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _expect(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if not self._answering() and not self.transport.is_closing():
                self.transport.close()

    return Patient
