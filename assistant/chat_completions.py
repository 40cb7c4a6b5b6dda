"""/v1/chat/completions: a turn's pieces as deltas, streamed or put together.

A preamble to a call, which the model writes on the commentary channel, is for the user to read and
so part of `content`, as llama.cpp's server has it; reasoning never is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from gptoss_onnx.assistant.chat_request import ChatRequest
from gptoss_onnx.assistant.choice import Finished, Piece, TurnUsage
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.json_body import read_body
from gptoss_onnx.assistant.service import Exchange, Service, new_id
from gptoss_onnx.assistant.streams import DONE, EventStream, one_write
from gptoss_onnx.runtimes.constraint import FormLost
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.request import Token
from gptoss_onnx.runtimes.tokenizer import Tokenizer

ENDPOINT = "/v1/chat/completions"
_LEAST = -9999.0  # what OpenAI writes for the logarithm of nothing: JSON has no infinity
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Delta = dict[str, Any]


def routes(service: Service) -> list[Route]:
    async def chat_completions(request: Request) -> ASGIApp:
        body = await read_body(request, ChatRequest)
        exchange = await service.answer(
            request,
            ENDPOINT,
            body.model,
            lambda engine: body.turn(engine.package, service.timeout),
        )
        if body.stream:
            return EventStream(exchange, _events(exchange, body))
        try:
            return JSONResponse(await _whole(exchange, bool(body.logprobs)))
        finally:
            await exchange.close()

    return [Route(ENDPOINT, chat_completions, methods=["POST"])]


class Deltas:
    """What each piece of a choice adds to its message."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._said: set[str] = set()

    def of(self, piece: Piece) -> tuple[Delta, Sequence[Any]]:
        """The delta, and the log probabilities of its tokens."""
        if piece.part == "call" and piece.call is not None:
            call: Delta = {"index": piece.call.index}
            if piece.begins:
                call |= {"id": piece.call.id, "type": "function"}
                function = {"name": piece.call.name, "arguments": piece.text}
            else:
                function = {"arguments": piece.text}
            return {"tool_calls": [call | {"function": function}]}, ()
        text = piece.text
        if piece.begins and piece.part in self._said:
            text = "\n\n" + text  # a message behind another
        self._said.add(piece.part)
        shown = piece.tokens if piece.part == "content" else ()
        return {piece.part: text}, [self._logprobs(token) for token in shown]

    def _logprobs(self, token: Token) -> dict[str, Any]:
        likeliest = [self._logprob(i, value) for i, value in token.top]
        return {**self._logprob(token.id, token.logprob), "top_logprobs": likeliest}

    def _logprob(self, token: int, value: float | None) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        text = data.decode("utf-8", "replace") or self._tokenizer.show([token])
        logprob = _LEAST if value is None else max(value, _LEAST)
        return {"token": text, "logprob": logprob, "bytes": list(data)}


async def _events(exchange: Exchange, body: ChatRequest) -> AsyncIterator[bytes]:
    """Each token's delta as soon as it is there, in as few writes as there are."""
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    head = _head(exchange, "chat.completion.chunk")
    # Most of a chunk is the same for all of them.
    before = f'data: {json.dumps(head)[:-1]},"choices":[{{"index":'.encode()
    after = b',"usage":null}\n\n' if with_usage else b"}\n\n"

    def chunk(choice: int, delta: Delta, told: Sequence[Any] = (), reason: str = "null") -> bytes:
        shown = body.logprobs and told
        about = _dumps({"content": told, "refusal": None}) if shown else "null"
        return b'%b%d,"delta":%b,"logprobs":%b,"finish_reason":%b}]%b' % (
            before,
            choice,
            _dumps(delta).encode(),
            about.encode(),
            reason.encode(),
            after,
        )

    tokenizer = exchange.engine.package.tokenizer
    deltas = [Deltas(tokenizer) for _ in exchange.answer.choices]
    yield b"".join(chunk(i, {"role": "assistant", "content": ""}) for i in range(len(deltas)))
    async for pieces in exchange.pieces():
        for data in one_write(
            chunk(piece.choice, *deltas[piece.choice].of(piece))
            if isinstance(piece, Piece)
            else chunk(piece.choice, {}, (), json.dumps(finish_reason(piece)))
            for piece in pieces
        ):
            yield data
    if with_usage:
        total = {**head, "choices": [], "usage": usage_of(exchange.usage)}
        yield f"data: {json.dumps(total)}\n\n".encode()
    yield DONE


async def _whole(exchange: Exchange, logprobs: bool) -> dict[str, Any]:
    """The stream's deltas put together: the same calls, texts and reasons."""
    tokenizer = exchange.engine.package.tokenizer
    deltas = [Deltas(tokenizer) for _ in exchange.answer.choices]
    found = [_Message() for _ in deltas]
    async for pieces in exchange.pieces():
        for piece in pieces:
            if isinstance(piece, Piece):
                found[piece.choice].add(*deltas[piece.choice].of(piece))
    choices = [
        {
            "index": place,
            "message": message.content(),
            "logprobs": {"content": message.told, "refusal": None} if logprobs else None,
            "finish_reason": finish_reason(finished),
        }
        for place, (message, finished) in enumerate(zip(found, exchange.finished, strict=True))
    ]
    head = _head(exchange, "chat.completion")
    return {**head, "choices": choices, "usage": usage_of(exchange.usage)}


class _Message:
    """Deltas on their way to a message."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self._texts: dict[str, list[str]] = {}
        self._calls: list[dict[str, Any]] = []

    def add(self, delta: Delta, told: Sequence[Any]) -> None:
        self.told += told
        for call in delta.pop("tool_calls", ()):
            if call.pop("index") == len(self._calls):
                self._calls.append(call)
            else:
                function = self._calls[-1]["function"]
                function["arguments"] += call["function"]["arguments"]
        for part, text in delta.items():
            self._texts.setdefault(part, []).append(text)

    def content(self) -> dict[str, Any]:
        texts = {part: "".join(said) for part, said in self._texts.items()}
        said = texts.get("content") or (None if self._calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
        if "reasoning" in texts:
            message["reasoning"] = texts["reasoning"]
        return message | ({"tool_calls": self._calls} if self._calls else {})


def finish_reason(finished: Finished) -> str:
    """As the API knows them; ApiError for what is none of the model's doing."""
    if isinstance(finished.error, FormLost):  # asked again, it would be again
        raise ApiError(str(finished.error), code="schema_too_complex")
    if isinstance(finished.error, UserError):  # no memory for it, say
        raise ApiError(str(finished.error), status=503, code="engine_failed")
    if finished.error is not None:
        raise finished.error
    if finished.reason == "cancelled":
        raise ApiError("the reply was cancelled", status=503, code="cancelled")
    return "length" if finished.reason == "deadline" else finished.reason


def usage_of(usage: TurnUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _head(exchange: Exchange, kind: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl"),
        "object": kind,
        "created": exchange.created,
        "model": exchange.model.id,
    }
