"""The server on a Ray cluster, as an application of plain Ray Serve.

    serve run gptoss_onnx.assistant.ray_serve:application package=/models/20b replicas=4

Ray's proxies hand each request to `front`, which stands before the models as it does in
`gptoss serve`: hosts, origins, keys and sizes. It asks the replica that its conversation's
beginning falls to, and the next one where that has no row free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_onnx.assistant.app import make_app
from gptoss_onnx.assistant.conversation_key import conversation_key
from gptoss_onnx.assistant.database import data_folder
from gptoss_onnx.assistant.errors import ApiError, api_error
from gptoss_onnx.assistant.ray_cluster import threads_each
from gptoss_onnx.assistant.ray_metrics import CONTENT_TYPE, joined
from gptoss_onnx.assistant.security import Rules, is_loopback, secured
from gptoss_onnx.assistant.serving import make_service
from gptoss_onnx.assistant.users import Users
from gptoss_onnx.runtimes.errors import UserError

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_ASIDE = 4  # requests beside those that have a row: they ask for models, not for replies
_MANY = 1 << 20  # requests that the front has under way: it only hands them on
_PATIENCE = 10.0  # seconds for all replicas to tell their figures
_PARTS = ("http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")


def _listed(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_listed)]  # a,b from a command line
Absolute = Annotated[Path, Field(), BeforeValidator(lambda value: Path(value).absolute())]


class Arguments(BaseModel):
    """As `gptoss serve` has them. `threads`: of each replica, and cores that Ray keeps for it."""

    model_config = ConfigDict(extra="forbid")

    package: Absolute
    replicas: int = Field(1, ge=1)
    threads: int | None = Field(None, ge=1)
    rows: int = Field(16, ge=1)
    queue: int = Field(256, ge=0)
    context: int | None = Field(None, ge=2)
    cache: int | None = Field(None, ge=0)
    timeout: float | None = Field(None, gt=0)
    max_loaded: int = Field(1, ge=1)
    api_keys: bool = False
    allow_host: Names = []
    cors_origin: Names = []
    log_text: bool = False
    data: Absolute = Field(default_factory=data_folder)
    terms: Absolute | None = None
    policy: Absolute | None = None
    policy_package: Absolute | None = None


def application(args: dict[str, Any]) -> serve.Application:
    """What `serve run` and a config file of Ray Serve start, with `Arguments` by name."""
    try:
        options = Arguments.model_validate(args)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None
    threads = options.threads or threads_each(options.replicas)
    model = serve.deployment(
        Replica,
        name="model",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": threads},
        max_ongoing_requests=options.rows + _ASIDE,
        max_queued_requests=options.queue,
        request_router_config=RequestRouterConfig(
            request_router_class=_ROUTER,
            request_router_kwargs={"num_fallback_replicas": options.replicas},
        ),
    )

    def front() -> ASGIApp:
        return front_app(options, serve.get_deployment_handle("model"))

    ingress = serve.deployment(
        serve.ingress(front)(),
        name="front",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_MANY,
    )
    return ingress.bind(model.bind(options.model_dump() | {"threads": threads}))


class Replica:
    """A process with a package: the application of `gptoss serve`, its rules left to the front."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._service = make_service(**options)
        self._app = make_app(self._service, Rules(None, ["*"]))
        self._tasks: set[asyncio.Task[None]] = set()

    async def check_health(self) -> None:
        """Ray sends requests from the first time on that this returns: the package is loaded."""
        models = list(self._service.models)
        if len(models) == 1:  # more are loaded as they are asked for
            async with self._service.models.lend(models[0].id):
                pass

    async def figures(self) -> tuple[str, bytes]:
        """What /metrics tells, and of which replica."""
        return serve.get_replica_context().replica_id.unique_id, self._service.metrics.text()

    async def ask(self, scope: Scope, body: bytes) -> AsyncIterator[list[Message]]:
        """What the application sends for a request, as it comes; leaving it tells that nobody
        is there any more."""
        said: asyncio.Queue[Message | None] = asyncio.Queue()
        gone = asyncio.Event()
        asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if asked:
                return asked.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def answer() -> None:
            try:
                await self._app({"type": "http", **scope}, receive, said.put)
            finally:
                said.put_nowait(None)

        task = asyncio.create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while (message := await said.get()) is not None:
                messages = [message]
                while not said.empty() and (message := said.get_nowait()) is not None:
                    messages.append(message)
                yield messages
                if message is None:
                    break
        finally:
            gone.set()

    async def __del__(self) -> None:
        if hasattr(self, "_service"):
            await self._service.close()


def front_app(options: Arguments, models: DeploymentHandle) -> ASGIApp:
    """What Ray's proxies ask. Without keys it answers this machine alone, as `gptoss serve` does
    that listens on loopback only: where Ray's proxy listens is not told here."""
    users = Users(options.data) if options.api_keys else None
    rules = Rules(None, options.allow_host, options.cors_origin)
    app = secured(_Front(models), rules, users)
    return app if users is not None else _Local(app)


class _Front:
    def __init__(self, models: DeploymentHandle) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        if scope["path"] == "/health":  # the front's: models may be busy for long
            return await JSONResponse({"status": "ok"})(scope, receive, send)
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if scope["path"] == "/metrics":
                await self._figures(scope, receive, noted)
            else:
                await self._hand_on(scope, receive, noted)
        except Exception as error:
            if begun:  # nothing can be told any more
                raise
            await _told(error)(scope, receive, send)

    async def _figures(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = await self._models.broadcast("figures").results_async(timeout_s=_PATIENCE)
        await Response(joined(found), media_type=CONTENT_TYPE)(scope, receive, send)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        asked = {name: scope[name] for name in _PARTS}
        asked["state"] = {"user": scope.get("state", {}).get("user")}
        handle = self._models.options(
            method_name="ask", stream=True, session_id=conversation_key(bytes(body))
        )
        answer = handle.remote(asked, bytes(body))
        leaving = asyncio.create_task(_gone(receive))
        leaving.add_done_callback(lambda task: task.cancelled() or answer.cancel())
        try:
            async for messages in answer:
                for message in messages:
                    await send(message)
        except RequestCancelledError:  # by us, as nobody is there any more
            if not leaving.done():
                raise
        finally:
            leaving.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


def _told(error: Exception) -> ApiError:
    if isinstance(error, BackPressureError):
        headers = {"Retry-After": "1"}
        return ApiError(
            "too many requests wait: try again", status=429, code="queue_full", headers=headers
        )
    if isinstance(error, RayError | RayServeException):
        return ApiError("the replica of the model is gone: try again", status=503)
    return api_error(error)


class _Local:
    """Only for clients on the machine whose proxy they ask."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client") or ("",)
        if scope["type"] == "http" and not is_loopback(client[0]):
            refused = ApiError(
                "without keys this server answers its own machine alone: start it with "
                "api_keys=true, and make keys with gptoss users add",
                status=403,
                code="needs_keys",
            )
            return await refused(scope, receive, send)
        return await self._app(scope, receive, send)
