"""Running the application under uvicorn: what is served to whom, from start to end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from gptoss_onnx.assistant.app import make_app
from gptoss_onnx.assistant.connections import http_protocol
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.filters import load_filter
from gptoss_onnx.assistant.metrics import Metrics
from gptoss_onnx.assistant.models import EngineOptions, Models
from gptoss_onnx.assistant.response_store import ResponseStore
from gptoss_onnx.assistant.security import Rules, is_loopback
from gptoss_onnx.assistant.service import Service
from gptoss_onnx.assistant.usage_log import UsageLog
from gptoss_onnx.assistant.users import Users
from gptoss_onnx.runtimes.errors import UserError

_GRACE = 5  # seconds for clients to read the end of their answers

Echo = Callable[[str], object]


def run(listening: socket.socket, *, echo: Echo, host: str, api_keys: bool, **options: Any) -> None:
    """Serve until a signal comes; UserError for what cannot be served."""
    port = listening.getsockname()[1]
    keys = api_keys or not is_loopback(host)
    with ExitStack() as stack:
        users = stack.enter_context(Users(options["data"])) if keys else None
        if users is not None and not any(user.revoked is None for user in users.all()):
            raise UserError(
                f"{'--api-keys' if api_keys else f'--host {host}'} needs users with keys, and "
                "there are none: make one with gptoss users add NAME"
            )
        service = make_service(**options)
        rules = Rules(port, options["allow_host"], options["cors_origin"])
        app = make_app(service, rules, users)
        Server(app, service, f"http://{_shown(host)}:{port}", echo).run(sockets=[listening])


def make_service(
    *,
    package: Path,
    rows: int = 16,
    queue: int = 256,
    context: int | None = None,
    cache: int | None = None,
    threads: int | None = None,
    max_loaded: int = 1,
    timeout: float | None = None,
    data: Path | None = None,
    log_text: bool = False,
    terms: Path | None = None,
    policy: Path | None = None,
    policy_package: Path | None = None,
    **_: Any,
) -> Service:
    """What `gptoss serve` and each replica of Ray Serve have."""
    content_filter = load_filter(terms, policy_package, policy)
    engine = EngineOptions(rows, queue, context, cache, threads)
    models = Models(package, engine, max_loaded=max_loaded)
    metrics = Metrics(models)
    models.on_load = lambda name: metrics.loads.labels(name).inc()
    return Service(
        models,
        metrics,
        UsageLog(data, text=log_text),
        ResponseStore(data),
        content_filter,
        log_text=log_text,
        timeout=timeout,
    )


class Server(uvicorn.Server):
    def __init__(self, app: ASGIApp, service: Service, address: str, echo: Echo) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=http_protocol(),
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACE,
            )
        )
        self._service = service
        self._address = address
        self._echo = echo

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        models = list(self._service.models)
        async with AsyncExitStack() as stack:
            if len(models) == 1:  # more are loaded as they are asked for
                try:
                    lent = self._service.models.lend(models[0].id)
                    _, engine = await stack.enter_async_context(lent)
                except ApiError as error:
                    raise UserError(str(error.__cause__ or error)) from error
                if engine.one_at_a_time:
                    self._echo(f"requests run one after the other: {engine.one_at_a_time}")
        shown = ", ".join(model.id for model in models)
        self._echo(f"serving {shown} at {self._address}/v1; Ctrl-C ends it")
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, without raising the signal again afterwards: this end is a clean one."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.shut()
        await super().shutdown(sockets)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
