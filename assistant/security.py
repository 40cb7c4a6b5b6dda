"""What stands before the APIs: hosts, origins, keys, sizes and slowness. Pure ASGI.

A page that a user happens to open can send requests to a server on the same machine, by its own
name once that is made to resolve to 127.0.0.1: so a request must name a host that is ours, and one
from a page must come from a page of ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_onnx.assistant.database import StorageError
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.users import Users

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_MAX_HEADERS = 32 << 10  # bytes
_OPEN = ("/health",)  # without a key: it tells nothing of anybody


@dataclass(frozen=True)
class Rules:
    """`port` None: any. `allow_hosts`: names, or names with a port, beside loopback's; * is any.

    `cors_origins`: pages' origins that may ask; * is any. `max_body` in bytes, `body_seconds` for
    all of it.
    """

    port: int | None = None
    allow_hosts: Collection[str] = ()
    cors_origins: Collection[str] = ()
    max_body: int = 16 << 20
    body_seconds: float = 60.0


def secured(app: ASGIApp, rules: Rules, users: Users | None) -> ASGIApp:
    """`app` behind `rules`; with `users`, everyone needs a key."""
    app = _Bodies(app, rules)
    if users is not None:
        app = _Keys(app, users)
    if rules.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=list(rules.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    return _Hosts(app, rules)


class _Hosts:
    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._allowed = {name.lower() for name in rules.allow_hosts}
        self._origins = {origin.lower().rstrip("/") for origin in rules.cors_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await _other(self._app, scope, receive, send)
        headers = Headers(scope=scope)
        if fault := _smuggled(headers):
            return await fault(scope, receive, send)
        hosts = [host.lower() for host in headers.getlist("host")]
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            refused = ApiError(
                "this server does not answer to that Host: start it with --allow-host for another",
                status=421,
                code="host_not_allowed",
            )
            return await refused(scope, receive, send)
        for origin in headers.getlist("origin"):
            if not self._may_ask(origin.lower(), hosts[0]):
                refused = ApiError(
                    "pages of that origin may not ask: start the server with --cors-origin",
                    status=403,
                    code="origin_not_allowed",
                )
                return await refused(scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        name, port = _split(host)
        if self._allowed & {"*", name, host}:
            return True
        return name in LOOPBACK and (
            self._rules.port is None or port in ("", str(self._rules.port))
        )

    def _may_ask(self, origin: str, host: str) -> bool:
        own = (f"http://{host}", f"https://{host}")
        return origin in own or bool(self._origins & {"*", origin})


def _smuggled(headers: Headers) -> ApiError | None:
    """Headers that two readers may understand as two requests, or that nobody needs so large."""
    if "transfer-encoding" in headers and "content-length" in headers:
        closing = {"Connection": "close"}
        return ApiError("Transfer-Encoding and Content-Length exclude each other", headers=closing)
    if sum(len(name) + len(value) for name, value in headers.raw) > _MAX_HEADERS:
        return ApiError("the headers are too large", status=431)
    return None


def _split(host: str) -> tuple[str, str]:
    """Name and port; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    if not colon or "]" in port:
        return host, ""
    return name, port


class _Keys:
    def __init__(self, app: ASGIApp, users: Users) -> None:
        self._app = app
        self._users = users

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN:
            return await self._app(scope, receive, send)
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            bearer = kind.lower() == "bearer"
            user = await self._users.call(self._users.find, key.strip()) if bearer else None
        except StorageError:
            refused = ApiError("keys cannot be checked now: try again", status=503)
            return await refused(scope, receive, send)
        if user is None:
            refused = ApiError(
                "no valid API key: send one of `gptoss users add` as Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            return await refused(scope, receive, send)
        scope.setdefault("state", {})["user"] = user.name
        return await self._app(scope, receive, send)


class _Bodies:
    """Too large or too slow a body is an error where it is read."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._rules.max_body:
            return await self._too_large()(scope, receive, send)
        size, more = 0, True
        deadline = time.monotonic() + self._rules.body_seconds

        async def limited() -> Message:
            nonlocal size, more
            if not more:  # whether the client is still there
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise ApiError("the body came too slowly", status=408) from None
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > self._rules.max_body:
                raise self._too_large()
            return message

        return await self._app(scope, limited, send)

    def _too_large(self) -> ApiError:
        return ApiError(
            f"the body is too large: {self._rules.max_body} bytes at most",
            status=413,
            headers={"Connection": "close"},
        )


async def _other(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """No HTTP: the server's own start and end; nothing here speaks WebSocket."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await app(scope, receive, send)


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
