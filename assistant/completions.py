"""/v1/completions: text that goes on from a prompt as it stands, in no format."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from gptoss_onnx.assistant.chat_completions import finish_reason, usage_of
from gptoss_onnx.assistant.choice import AnyChoice, Blocked, Finished, Piece
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.json_body import WHOLE, Body, read_body
from gptoss_onnx.assistant.raw_choice import RawChoice
from gptoss_onnx.assistant.requests import PenaltyFields, SamplingFields, options, stops
from gptoss_onnx.assistant.service import Exchange, Service, new_id
from gptoss_onnx.assistant.streams import DONE, EventStream, one_write
from gptoss_onnx.assistant.turn import Answer, begin, check_length, deadline_in, with_seed
from gptoss_onnx.runtimes.content_filter import ContentFilter, review
from gptoss_onnx.runtimes.engine import Engine
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.request import Listener, Request, Token

ENDPOINT = "/v1/completions"
_LEAST = -9999.0


def _refused(why: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, bool) or value not in (None, "", 1):
            raise ValueError(why)
        return value

    return BeforeValidator(check)


class StreamOptions(Body):
    include_usage: bool | None = None


# What the document says of them; those that are not so are refused in words of their own.
Text = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1})]
Id = Annotated[int, WHOLE, WithJsonSchema({"type": "integer", "minimum": 0})]
Ids = Annotated[list[Id], Field(min_length=1)]


class CompletionRequest(SamplingFields, PenaltyFields):
    """`prompt`: one text or several, or the ids of tokens of one or several.

    `ignore_eos`, as other servers know it: `max_tokens` come, whatever the model says.
    """

    model: str
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=128)]
    )
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31), WHOLE] | None = None
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    echo: bool | None = None
    ignore_eos: bool | None = None
    suffix: Annotated[None, _refused("text cannot be written before a suffix: leave it out")] = None
    best_of: Annotated[
        Literal[1] | None, WHOLE, _refused("only 1 is supported: take n and choose")
    ] = None

    def prompts(self, package: Package) -> list[list[int]]:
        """Ids of each prompt; ApiError for an empty one."""
        given: Any = self.prompt
        many = isinstance(given, list) and not isinstance(given[0], int)
        encode = package.tokenizer.encode
        found = [encode(p) if isinstance(p, str) else p for p in (given if many else [given])]
        if not all(found):
            raise ApiError("a prompt is empty: it needs a token at least", param="prompt")
        return found


def routes(service: Service) -> list[Route]:
    async def completions(request: HttpRequest) -> ASGIApp:
        body = await read_body(request, CompletionRequest)
        if body.echo and body.logprobs is not None:
            raise ApiError("echo with logprobs is not supported: take one of them", param="echo")

        async def begin_with(engine: Engine) -> Answer:
            prompts = body.prompts(engine.package)
            exchange.prompt = "\n\n".join(map(engine.package.tokenizer.decode, prompts))
            return await _begin(engine, body, prompts, service)

        exchange = Exchange(service, ENDPOINT, request)
        await service.begin(exchange, body.model, begin_with)
        if body.stream:
            return EventStream(exchange, _events(exchange, body))
        try:
            return JSONResponse(await _whole(exchange, body))
        finally:
            await exchange.close()

    return [Route(ENDPOINT, completions, methods=["POST"])]


async def _begin(
    engine: Engine, body: CompletionRequest, prompts: list[list[int]], service: Service
) -> Answer:
    package, content_filter = engine.package, service.content_filter
    chosen = options(package, body, body.max_tokens)
    if body.ignore_eos:
        chosen = replace(chosen, stop_ids=frozenset())
    deadline = deadline_in(service.timeout)
    count = body.n or 1
    made: list[Callable[[Listener], AnyChoice]] = []

    def choice(ids: list[int], place: int, wake: Listener) -> RawChoice:
        request = Request(
            ids,
            with_seed(chosen, place),
            top_logprobs=body.logprobs,
            deadline=deadline,
        )
        running = engine.submit(request, wake)
        shared = place % count > 0
        return RawChoice(place, running, package, stops(body.stop), shared, content_filter)

    for number, ids in enumerate(prompts):
        check_length(engine, ids)
        rule = await _forbidden(content_filter, package.tokenizer.decode(ids))
        for place in range(number * count, (number + 1) * count):
            if rule is None:
                made.append(partial(choice, ids, place))
            else:
                made.append(partial(Blocked, place, rule, 0 if place % count else len(ids)))
    return begin(made, sum(map(len, prompts)))


async def _forbidden(content_filter: ContentFilter | None, prompt: str) -> str | None:
    if content_filter is None:
        return None
    return await asyncio.to_thread(review, content_filter, "prompt", [prompt])


def _echoed(exchange: Exchange, body: CompletionRequest, place: int) -> str:
    if not body.echo or isinstance(exchange.answer.choices[place], Blocked):
        return ""
    package = exchange.engine.package
    prompt = body.prompts(package)[place // (body.n or 1)]
    return package.tokenizer.decode(prompt)


async def _events(exchange: Exchange, body: CompletionRequest) -> AsyncIterator[bytes]:
    head = _head(exchange)
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    told = [_Logprobs(exchange.engine.package) for _ in exchange.answer.choices]

    def chunk(place: int, text: str, tokens: Sequence[Token], reason: str | None) -> bytes:
        about = None if body.logprobs is None else told[place].of(text, tokens)
        choice = {"index": place, "text": text, "logprobs": about, "finish_reason": reason}
        usage = {"usage": None} if with_usage else {}
        return f"data: {json.dumps({**head, 'choices': [choice], **usage})}\n\n".encode()

    if body.echo:
        for place in range(len(told)):
            yield chunk(place, _echoed(exchange, body, place), (), None)
    async for pieces in exchange.pieces():
        for data in one_write(
            chunk(piece.choice, piece.text, piece.tokens, None)
            if isinstance(piece, Piece)
            else chunk(piece.choice, "", (), finish_reason(piece))
            for piece in pieces
        ):
            yield data
    if with_usage:
        total = {**head, "choices": [], "usage": usage_of(exchange.usage)}
        yield f"data: {json.dumps(total)}\n\n".encode()
    yield DONE


async def _whole(exchange: Exchange, body: CompletionRequest) -> dict[str, Any]:
    places = range(len(exchange.answer.choices))
    texts = [_echoed(exchange, body, place) for place in places]
    told = [_Logprobs(exchange.engine.package) for _ in places]
    tokens: list[list[dict[str, Any]]] = [[] for _ in places]
    async for pieces in exchange.pieces():
        for piece in pieces:
            if not isinstance(piece, Finished):
                texts[piece.choice] += piece.text
                tokens[piece.choice].append(told[piece.choice].of(piece.text, piece.tokens))
    choices = [
        {
            "index": place,
            "text": texts[place],
            "logprobs": None if body.logprobs is None else _joined(tokens[place]),
            "finish_reason": finish_reason(finished),
        }
        for place, finished in enumerate(exchange.finished)
    ]
    return {**_head(exchange), "choices": choices, "usage": usage_of(exchange.usage)}


class _Logprobs:
    """Of one choice's tokens, in this API's shape."""

    def __init__(self, package: Package) -> None:
        self._tokenizer = package.tokenizer
        self._offset = 0

    def of(self, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        shown = [self._show(token.id) for token in tokens]
        offsets = []
        start = self._offset
        for piece in shown:
            offsets.append(start)
            start += len(piece)
        self._offset += len(text)
        return {
            "tokens": shown,
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [
                {self._show(i): _finite(value) for i, value in token.top} for token in tokens
            ],
            "text_offset": offsets,
        }

    def _show(self, token: int) -> str:
        """Its text; of half a character its bytes, so that two of a list do not look the same."""
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode() or self._tokenizer.show([token])
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for part in parts for value in part[name]] for name in names}


def _finite(value: float | None) -> float:
    return _LEAST if value is None else max(value, _LEAST)


def _head(exchange: Exchange) -> dict[str, Any]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": exchange.created,
        "model": exchange.model.id,
    }
