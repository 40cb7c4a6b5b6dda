"""The server as one ASGI application, for uvicorn, Ray Serve or a test."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_onnx.assistant import chat_completions, completions, responses
from gptoss_onnx.assistant.errors import ApiError, api_error, handle
from gptoss_onnx.assistant.openapi import document
from gptoss_onnx.assistant.security import Rules, secured
from gptoss_onnx.assistant.service import Service
from gptoss_onnx.assistant.users import Users
from gptoss_onnx.runtimes.errors import UserError

_ERRORS = (ApiError, UserError, HTTPException)


def make_app(service: Service, rules: Rules | None = None, users: Users | None = None) -> ASGIApp:
    """What `service` has, behind `rules`; with `users`, for those alone.

    The application closes `service` as it ends.
    """

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        yield
        await service.close()

    routes: list[BaseRoute] = [
        *_about(service),
        *chat_completions.routes(service),
        *completions.routes(service),
        *responses.routes(service),
    ]
    # Starlette's own application would answer an unforeseen exception in a shape of its own.
    router = Router(routes, redirect_slashes=False, lifespan=lifespan)
    app = secured(
        ExceptionMiddleware(router, dict.fromkeys(_ERRORS, handle)), rules or Rules(), users
    )
    return _Observed(app, service, [route.path for route in routes if isinstance(route, Route)])


def _about(service: Service) -> list[Route]:
    async def models(_: Request) -> Response:
        found = [model.describe() for model in service.models]
        return JSONResponse({"object": "list", "data": found})

    async def model(request: Request) -> Response:
        return JSONResponse(service.models[request.path_params["model"]].describe())

    async def health(_: Request) -> Response:
        loaded = [model.id for model in service.models if model.engine is not None]
        status = "shutting down" if service.closing else "ok"
        return JSONResponse({"status": status, "loaded": loaded}, 503 if service.closing else 200)

    async def metrics(_: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(service.metrics.text(), media_type=kind)

    async def openapi(_: Request) -> Response:
        return JSONResponse(document([model.id for model in service.models]))

    return [
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", model),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
    ]


class _Observed:
    """Each request is numbered and counted, and whatever fails has OpenAI's shape."""

    def __init__(self, app: ASGIApp, service: Service, paths: list[str]) -> None:
        self._app = app
        self._service = service
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        scope["app"] = self  # what makes Starlette raise what is wrong, not answer it
        status: int | None = None

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as error:
            if status is not None:  # nothing can be told any more
                raise
            await api_error(error)(scope, receive, observed)
        finally:
            endpoint = self._endpoint(scope["path"])
            self._service.metrics.requests.labels(endpoint, str(status or 499)).inc()

    def _endpoint(self, path: str) -> str:
        """A path that we have, whatever a caller asks for."""
        if path in self._paths:
            return path
        fixed = ((known, known.partition("{")[0]) for known in self._paths if "{" in known)
        return next((known for known, start in fixed if path.startswith(start)), "other")
