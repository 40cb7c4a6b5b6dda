"""/v1/responses: a turn's pieces as output items, stored for their user, or not at all.

A stream has OpenAI's events in OpenAI's order; its last response is the answer that is not
streamed. What was stored before stays whole, whatever fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gptoss_onnx.assistant.chat_completions import finish_reason
from gptoss_onnx.assistant.choice import Piece
from gptoss_onnx.assistant.errors import ApiError, api_error
from gptoss_onnx.assistant.json_body import read_body
from gptoss_onnx.assistant.requests import options
from gptoss_onnx.assistant.response_events import (
    Event,
    Json,
    Numbered,
    Output,
    usage_of,
)
from gptoss_onnx.assistant.response_history import Item
from gptoss_onnx.assistant.response_request import ResponseRequest
from gptoss_onnx.assistant.response_store import new_id
from gptoss_onnx.assistant.service import Exchange, Service
from gptoss_onnx.assistant.stored_responses import StoredResponses, user_of
from gptoss_onnx.assistant.streams import EventStream
from gptoss_onnx.assistant.turn import TooLong

ENDPOINT = "/v1/responses"
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def routes(service: Service) -> list[Route]:
    stored = StoredResponses(service.store)

    async def create(request: Request) -> ASGIApp:
        body = await read_body(request, ResponseRequest)
        user = user_of(request)
        earlier: list[Item] = []
        if body.previous_response_id is not None:
            earlier = await stored.conversation(body.previous_response_id, user)
        sent = await stored.resolved(body.input, user)
        try:
            exchange = await service.answer(
                request,
                ENDPOINT,
                body.model,
                lambda engine: body.turn(engine.package, earlier, sent, service.timeout),
            )
        except TooLong as error:
            code = "context_length_exceeded"
            raise ApiError(str(error), param="input", code=code) from error
        answer = _Answer(exchange, body, sent, user, stored)
        if body.stream:
            return EventStream(exchange, answer.stream())
        try:
            return _json(await answer.whole())
        finally:
            await exchange.close()

    async def retrieve(request: Request) -> Response:
        if request.query_params.get("stream", "false").lower() != "false":
            raise ApiError("a stored response is not streamed: leave it out", param="stream")
        return _json(await stored.get(request.path_params["id"], user_of(request)))

    async def delete(request: Request) -> Response:
        found = request.path_params["id"]
        await stored.delete(found, user_of(request))
        return _json({"id": found, "object": "response", "deleted": True})

    async def input_items(request: Request) -> Response:
        return _json(await stored.page(request))

    one = ENDPOINT + "/{id}"
    return [
        Route(ENDPOINT, create, methods=["POST"]),
        Route(one, retrieve, methods=["GET"]),
        Route(one, delete, methods=["DELETE"]),
        Route(one + "/input_items", input_items, methods=["GET"]),
    ]


@dataclass(frozen=True)
class _Answer:
    """One response on its way: to be streamed or to be had as a whole, once."""

    exchange: Exchange
    body: ResponseRequest
    sent: Sequence[Item]
    user: str | None
    stored: StoredResponses

    async def stream(self) -> AsyncIterator[bytes]:
        numbered = Numbered()
        begun = self._response("in_progress")
        names = "response.created", "response.in_progress"
        yield numbered.encode({"type": name, "response": begun} for name in names)
        try:
            async for events in self._events():
                yield numbered.encode(events)
        except Exception as error:  # the status has been sent
            yield numbered.encode(self._failed(api_error(error)))

    async def whole(self) -> Json:
        """The stream's last response; ApiError in the place of one that failed."""
        last: Json = {}
        async for events in self._events():
            last = events[-1] if events else last
        response: Json = last["response"]
        return response

    async def _events(self) -> AsyncIterator[list[Event]]:
        """Behind those of the beginning; what cannot be stored is no answer."""
        async for pieces in self.exchange.pieces():
            events: list[Event] = []
            for piece in pieces:
                if isinstance(piece, Piece):
                    events += self._output.add(piece)
                else:
                    whole = piece.reason in ("stop", "tool_calls")
                    events += self._output.finish("completed" if whole else "incomplete")
            yield events
        (finished,) = self.exchange.finished
        why = _INCOMPLETE.get(finish_reason(finished))
        response = self._response("incomplete" if why else "completed")
        if why:
            response["incomplete_details"] = {"reason": why}
        if response["store"]:
            await self.stored.put(response, self.user, self.sent)
        yield [{"type": f"response.{response['status']}", "response": response}]

    def _failed(self, error: ApiError) -> list[Event]:
        """An error, and the response as far as it came."""
        told = error.body["error"]
        about = {"code": told["code"] or told["type"], "message": told["message"]}
        events = self._output.finish("incomplete")
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": told["message"]}
        return [
            *events,
            {"type": "error", **about, "param": told["param"]},
            {"type": "response.failed", "response": response},
        ]

    @cached_property
    def _id(self) -> str:
        return new_id()

    @cached_property
    def _output(self) -> Output:
        return Output(self._id, self.exchange.engine.package.tokenizer, self.body.logprobs)

    def _response(self, status: str) -> Json:
        """As it is now, with everything that was asked for."""
        body, ended = self.body, status != "in_progress"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self.exchange.created,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": None,
            "model": self.exchange.model.id,
            "output": list(self._output.items),
            "usage": usage_of(self.exchange.usage) if ended else None,
            "previous_response_id": body.previous_response_id,
            "store": body.store is not False and self.stored.store is not None,
            "background": False,
            "truncation": "disabled",
            "service_tier": "default",
            **self._asked,
        }

    @cached_property
    def _asked(self) -> Json:
        body = self.body
        chosen = options(self.exchange.engine.package, body, None).sampling
        asked = body.model_dump(
            mode="json",
            by_alias=True,
            include={"instructions", "max_output_tokens", "tool_choice", "tools", "user"},
        )
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
        return {
            **asked,
            "tools": asked["tools"] or [],
            "tool_choice": asked["tool_choice"] or "auto",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "metadata": body.metadata or {},
            "reasoning": {"effort": self.body.effort, "summary": None},
            "text": {"format": {"type": "text"}} | text,
            "temperature": chosen.temperature if chosen and chosen.do_sample else 0.0,
            "top_p": chosen.top_p if chosen else 1.0,
            "top_logprobs": body.top_logprobs or 0,
        }


def _json(content: Json) -> Response:
    # ASCII: what is quoted of a request may hold half a character.
    return Response(json.dumps(content).encode(), media_type="application/json")
