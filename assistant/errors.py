"""What goes wrong, in the shape that OpenAI's clients read: whatever is not 2xx has it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gptoss_onnx.assistant.turn import TooLong
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.scheduler import QueueFull

_log = logging.getLogger("gptoss")
_LONGEST = 500  # characters of a message: it may quote what a caller sent
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}


class ApiError(Exception):
    """An answer that is no 2xx: `message` is for people, `param` names a field, `code` is fixed."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        message = " ".join(str(self).split())
        if len(message) > _LONGEST:
            message = message[: _LONGEST - 1] + "…"
        kind = _TYPES.get(self.status, server)
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        return Response(self._json(), self.status, self.headers, "application/json")

    def event(self) -> bytes:
        """For a stream that has begun: its last event."""
        return b"data: " + self._json() + b"\n\n"

    def _json(self) -> bytes:
        return json.dumps(self.body).encode()  # ASCII: what is quoted may hold half a character

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application, for middleware."""
        await self.response()(scope, receive, send)


def api_error(error: BaseException) -> ApiError:
    """What a caller is told of `error`; of what nobody foresaw, that it is in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        headers = {"Retry-After": "1"}
        return ApiError(str(error), status=429, code="queue_full", headers=headers)
    if isinstance(error, TooLong):
        return ApiError(str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, UserError):
        return ApiError(str(error))
    if isinstance(error, HTTPException):  # Starlette's own: no such path, no such method
        return ApiError(error.detail, status=error.status_code, headers=error.headers)
    _log.error("a request failed", exc_info=error)
    return ApiError(
        "the server could not answer this; its log says why", status=500, code="internal_error"
    )


async def handle(request: Request, error: Exception) -> Response:
    """Starlette's handler of exceptions."""
    return api_error(error).response()


def not_served(name: str, served: list[str]) -> ApiError:
    """No model of that name."""
    known = ", ".join(served) or "none"
    return ApiError(
        f"the model {name[:80]!r} is not served here; these are: {known}",
        status=404,
        param="model",
        code="model_not_found",
    )
