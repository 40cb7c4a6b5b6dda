"""Stored responses as callers see them: 404 for what is not theirs, 503 for a disk that fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, ParamSpec, TypeVar

from starlette.requests import Request

from gptoss_onnx.assistant.database import StorageError
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.response_events import Json, response_of
from gptoss_onnx.assistant.response_history import Item, ItemReference, as_items, items_of
from gptoss_onnx.assistant.response_store import ResponseNotFound, ResponseStore
from gptoss_onnx.runtimes.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
_LIMIT = re.compile(r"[1-9][0-9]?|100")
_ORDERS: dict[str, Literal["asc", "desc"]] = {"asc": "asc", "desc": "desc"}


def user_of(request: Request) -> str | None:
    """Whose key came with it; None where nobody is asked for one."""
    user: str | None = request.scope.get("state", {}).get("user")
    return user


class StoredResponses:
    """A server's store, or none: then nothing is found."""

    def __init__(self, store: ResponseStore | None) -> None:
        self.store = store

    async def get(self, response_id: str, user: str | None) -> Json:
        return await self._call(self._store(response_id).get, response_id, user)

    async def delete(self, response_id: str, user: str | None) -> None:
        await self._call(self._store(response_id).delete, response_id, user)

    async def put(self, response: Json, user: str | None, sent: Sequence[Item]) -> None:
        found = response["id"], user, response, as_items(sent), response["previous_response_id"]
        await self._call(self._store(response["id"]).put, *found)

    async def page(self, request: Request) -> Json:
        """Of the items that a response answered, the last first unless asked otherwise."""
        asked, found = request.query_params, request.path_params["id"]
        limit = asked.get("limit", "20")
        order = _ORDERS.get(asked.get("order", "desc"))
        if not _LIMIT.fullmatch(limit):
            raise ApiError("limit must be a whole number from 1 to 100", param="limit")
        if order is None:
            raise ApiError("order must be asc or desc", param="order")
        items, after, user = self._store(found).items, asked.get("after"), user_of(request)
        try:
            page = await self._call(items, found, user, limit=int(limit), after=after, order=order)
        except UserError as error:
            raise ApiError(str(error), param="after") from error
        ids = [item["id"] for item in page.data] or [None]
        ends = {"first_id": ids[0], "last_id": ids[-1], "has_more": page.has_more}
        return {"object": "list", "data": page.data, **ends}

    async def conversation(self, response_id: str, user: str | None) -> list[Item]:
        """What was sent and answered up to a response, its answer included."""
        try:
            return items_of(await self._call(self._store(response_id).chain, response_id, user))
        except ApiError as error:
            if error.status != 404:
                raise
            # OpenAI's: 404 is for paths.
            code = "previous_response_not_found"
            raise ApiError(str(error), param="previous_response_id", code=code) from error

    async def resolved(self, sent: Sequence[Item], user: str | None) -> list[Item]:
        """With the items themselves in the place of references to them."""
        known: dict[str, list[Json]] = {}  # outputs of responses
        return [
            await self._referenced(item, f"input.{place}.id", user, known)
            if isinstance(item, ItemReference)
            else item
            for place, item in enumerate(sent)
        ]

    async def _referenced(
        self, item: ItemReference, param: str, user: str | None, known: dict[str, list[Json]]
    ) -> Item:
        missing = ApiError(
            f"no item {item.id[:80]!r} of an answer is stored: send the item itself",
            status=404,
            param=param,
        )
        response_id = response_of(item.id)
        if response_id is None:
            raise missing
        try:
            if response_id not in known:
                known[response_id] = (await self.get(response_id, user))["output"]
        except ApiError as error:
            raise (missing if error.status == 404 else error) from error
        match = [found for found in known[response_id] if found["id"] == item.id]
        if not match:
            raise missing
        return items_of(match)[0]

    def _store(self, response_id: str) -> ResponseStore:
        if self.store is None:
            raise _not_found(ResponseNotFound(response_id))
        return self.store

    async def _call(self, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        assert self.store is not None
        try:
            return await self.store.call(method, *args, **named)
        except ResponseNotFound as error:
            raise _not_found(error) from error
        except StorageError as error:
            raise ApiError(str(error), status=503, code="storage_failed") from error


def _not_found(error: ResponseNotFound) -> ApiError:
    return ApiError(str(error), status=404, param="id", code="response_not_found")
