"""What every API of the server has: models, users' figures, and one request's exchange."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import reduce

from starlette.requests import Request

from gptoss_onnx.assistant.choice import Finished, Piece, TurnUsage
from gptoss_onnx.assistant.database import StorageError
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.metrics import Metrics
from gptoss_onnx.assistant.models import Model, Models
from gptoss_onnx.assistant.response_store import ResponseStore
from gptoss_onnx.assistant.turn import Answer, Turn, start
from gptoss_onnx.assistant.usage_log import Entry, UsageLog
from gptoss_onnx.runtimes.content_filter import ContentFilter
from gptoss_onnx.runtimes.engine import Engine

_log = logging.getLogger("gptoss")
_UNWRITTEN = 10_000  # entries that wait for a disk to have room again

Begin = Callable[[Engine], Awaitable[Answer]]


@dataclass
class Service:
    """What the endpoints share. `timeout`: seconds until a reply is cut.

    `log_text`: whether the usage log keeps texts too.
    """

    models: Models
    metrics: Metrics
    usage_log: UsageLog | None = None
    store: ResponseStore | None = None
    content_filter: ContentFilter | None = None
    log_text: bool = False
    timeout: float | None = None
    closing: bool = False
    _open: set[Exchange] = field(default_factory=set)
    _unwritten: deque[Entry] = field(default_factory=lambda: deque(maxlen=_UNWRITTEN))
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def answer(
        self, request: Request, endpoint: str, model: str, make: Callable[[Engine], Turn]
    ) -> Exchange:
        """Answer the turn that `make` says once the model is loaded.

        ApiError or UserError if it cannot be; else the exchange is to be closed.
        """

        async def begin(engine: Engine) -> Answer:
            turn = make(engine)
            exchange.prompt = "\n\n".join(message.content for message in turn.messages)
            return await start(engine, turn, exchange.model.grammars, self.content_filter)

        exchange = Exchange(self, endpoint, request)
        return await self.begin(exchange, model, begin)

    async def begin(self, exchange: Exchange, model: str, begin: Begin) -> Exchange:
        """`exchange` with what `begin` answers; it is closed if that fails."""
        try:
            if self.closing:
                raise ApiError("the server is shutting down", status=503)
            await exchange.begin(model, begin)
        except BaseException:
            await exchange.close()
            raise
        self._open.add(exchange)
        return exchange

    def shut(self) -> None:
        """End every answer that is under way, and begin no other."""
        self.closing = True
        for exchange in list(self._open):
            exchange.answer.cancel()

    async def close(self) -> None:
        """Once nobody is served any more."""
        self.shut()
        await self.models.close()
        for store in (self.usage_log, self.store):
            if store is not None:
                await asyncio.to_thread(store.close)

    def forget(self, exchange: Exchange) -> None:
        self._open.discard(exchange)

    async def note(self, entry: Entry) -> None:
        """Write `entry`, and those that could not be written before."""
        if self.usage_log is None:
            return
        self._unwritten.append(entry)
        async with self._writing:
            while self._unwritten:
                try:
                    await self.usage_log.call(self.usage_log.add, self._unwritten[0])
                except StorageError as error:
                    _log.error("the usage log: %s; %d wait", error, len(self._unwritten))
                    return
                self._unwritten.popleft()


class Exchange:
    """One request that a model answers: iterate over `pieces`, then `close` in any case.

    A client that goes away cancels it at once.
    """

    model: Model
    engine: Engine
    answer: Answer

    def __init__(self, service: Service, endpoint: str, request: Request) -> None:
        self.created = int(time.time())
        self.request_id: str = request.scope.get("state", {}).get("request_id", "")
        self._user: str | None = request.scope.get("state", {}).get("user")
        self._service = service
        self._endpoint = endpoint
        self._request = request
        self._started = time.perf_counter()
        self._first: float | None = None
        self.prompt = ""  # for a log that keeps texts
        self._said: list[str] = []
        self._stack = AsyncExitStack()
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    async def begin(self, name: str, begin: Begin) -> None:
        models = self._service.models
        self.model, self.engine = await self._stack.enter_async_context(models.lend(name))
        self.answer = await begin(self.engine)
        self._watch = asyncio.create_task(self._cancel_when_gone())

    async def _cancel_when_gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.answer.cancel()

    async def pieces(self) -> AsyncIterator[list[Piece | Finished]]:
        """What came since the last, until every choice has its `Finished`."""
        keep = self._service.log_text
        async for pieces in self.answer:
            if self._first is None:
                self._first = time.perf_counter()
            if keep:
                self._said += [p.text for p in pieces if isinstance(p, Piece)]
            yield pieces

    @property
    def finished(self) -> list[Finished]:
        """In the order of choices."""
        return sorted(self.answer.finished, key=lambda finished: finished.choice)

    @property
    def usage(self) -> TurnUsage:
        """Of every choice, as far as it came."""
        return reduce(TurnUsage.__add__, (each.usage for each in self.answer.choices), TurnUsage())

    async def close(self) -> None:
        """Give the model back and note what it took."""
        if self._closed:
            return
        self._closed = True
        self._service.forget(self)
        if self._watch is not None:
            self._watch.cancel()
            self.answer.cancel()
        try:
            if self._watch is not None:
                await asyncio.shield(self._note())
        finally:
            await self._stack.aclose()

    async def _note(self) -> None:
        now = time.perf_counter()
        usage, finished = self.usage, self.finished
        first = None if self._first is None else self._first - self._started
        longest = max(choice.usage.completion_tokens for choice in self.answer.choices)
        each = (now - self._first) / (longest - 1) if self._first and longest > 1 else None
        self._service.metrics.answered(self.model.id, usage, first, each)
        await self._service.note(
            Entry(
                user=self._user,
                endpoint=self._endpoint,
                model=self.model.id,
                request_id=self.request_id,
                prompt_tokens=usage.prompt_tokens or self.answer.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                finish_reason=",".join(sorted({f.reason for f in finished})) or "cancelled",
                verdicts=tuple(v for f in finished for v in f.verdicts),
                duration=now - self._started,
                prompt=self.prompt,
                answer="".join(self._said),
            )
        )


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(16)}"
