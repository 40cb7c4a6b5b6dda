"""Responses that callers asked to be stored, for `previous_response_id` and to be read again."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from gptoss_onnx.assistant.database import (
    Database,
    Step,
    StorageError,
    storable,
)
from gptoss_onnx.runtimes.errors import UserError

_DAY = 86400.0
_PREFIXES = {
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}
_OWN = "FROM responses WHERE id = :id AND user = :user AND created >= :oldest"
# A turn is stored after the one it goes on from: by number, the first turn comes first.
_CHAIN = f"""
WITH RECURSIVE turn(id, previous) AS (
    SELECT id, previous {_OWN}
    UNION
    SELECT r.id, r.previous FROM responses AS r JOIN turn ON r.id = turn.previous
    WHERE r.user = :user AND r.created >= :oldest)
SELECT r.id, r.previous, r.response, r.items FROM responses AS r JOIN turn ON r.id = turn.id
ORDER BY r.number"""

Json = dict[str, Any]


class ResponseNotFound(UserError):
    """No response of this id is this user's; `id` is the one that is missing.

    `needed_by` is the response that goes on from it, where a chain is broken.
    """

    def __init__(self, missing: str, needed_by: str | None = None) -> None:
        self.id = missing
        shown = repr(storable(missing[:80]))
        super().__init__(
            f"no response {shown} is stored: it was deleted, is too old, or never was"
            if needed_by is None
            else f"{needed_by} goes on from {shown}, which was deleted or is too old: "
            "send the whole conversation as input"
        )


@dataclass(frozen=True)
class ItemPage:
    """Of a list of items; `has_more` beyond `data`, in the order asked for."""

    data: list[Json]
    has_more: bool


def new_id(prefix: str = "resp") -> str:
    """256 random bits: nobody guesses another's."""
    return f"{prefix}_{secrets.token_hex(32)}"


def with_ids(items: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Items of a request, each with the `id` that listings page by; those that have one keep it."""
    return [
        {**item, "id": item.get("id") or new_id(_PREFIXES.get(item.get("type", ""), "msg"))}
        for item in items
    ]


class ResponseStore(Database):
    """Each user sees own responses alone; `user` is "" where nobody is asked for a key.

    At most `max_responses` and `max_bytes` (of JSON) for `days` days. Where there is no room the
    oldest of whoever holds most goes, so that one user cannot drop another's.
    """

    FILE: ClassVar[str] = "responses.sqlite"
    STEPS: ClassVar[tuple[Step, ...]] = (
        (
            """CREATE TABLE responses (
                number INTEGER PRIMARY KEY AUTOINCREMENT,
                id TEXT NOT NULL UNIQUE,
                user TEXT NOT NULL,
                created REAL NOT NULL,
                previous TEXT,
                size INTEGER NOT NULL,
                response TEXT NOT NULL,
                items TEXT NOT NULL)""",
            "CREATE INDEX responses_by_user ON responses (user, size)",
            "CREATE INDEX responses_by_time ON responses (created)",
        ),
    )

    def __init__(
        self,
        folder: Path | None = None,
        *,
        max_responses: int = 10_000,
        max_bytes: int = 1 << 30,
        days: float = 30,
        wait: float = 5.0,
        create: bool = True,
    ) -> None:
        super().__init__(folder, wait=wait, create=create)
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._max_age = days * _DAY

    def put(
        self,
        id: str,
        user: str | None,
        response: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        previous: str | None = None,
        created: float | None = None,
    ) -> None:
        """On the disk when this returns. `items` are the request's own, see `with_ids`."""
        # ASCII: what callers send may hold half a surrogate pair, which SQLite's text cannot.
        texts = json.dumps(response), json.dumps(with_ids(items))
        size = sum(map(len, texts))
        if size > self._max_bytes:
            raise StorageError(f"a response of {size:,} bytes is too large to be stored")
        when = time.time() if created is None else created
        before = None if previous is None else storable(previous)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO responses (id, user, created, previous, size, response, items)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (id, user or "", when, before, size, *texts),
            )
            self._make_room(connection)

        self._write(work)

    def get(self, id: str, user: str | None) -> Json:
        """The response as it was put. ResponseNotFound: it is not there, or another's."""
        return self._row(id, user)[0]

    def items(
        self,
        id: str,
        user: str | None,
        *,
        limit: int = 20,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> ItemPage:
        """A page of the request's own items, behind the one of id `after`."""
        if not 1 <= limit <= 100:
            raise UserError(f"limit {limit} is not from 1 to 100")
        items = self._row(id, user)[1]
        if order == "desc":
            items = items[::-1]
        if after is not None:
            at = next((n for n, item in enumerate(items) if item["id"] == after), None)
            if at is None:
                raise UserError(f"after {storable(after[:80])!r} is no item of this response")
            items = items[at + 1 :]
        return ItemPage(items[:limit], len(items) > limit)

    def chain(self, id: str, user: str | None) -> list[Json]:
        """Items of the response `id` and of all turns before it, the first turn's first: of each
        what was sent, then what was answered.

        ResponseNotFound: it, or one that it goes on from, is not there.
        """
        rows = self._read(
            lambda connection: connection.execute(_CHAIN, self._named(id, user)).fetchall()
        )
        if not rows:
            raise ResponseNotFound(id)
        first, missing, *_ = rows[0]
        if missing is not None:
            raise ResponseNotFound(missing, needed_by=first)
        found: list[Json] = []
        for _, _, response, items in rows:
            found += [*json.loads(items), *json.loads(response).get("output", ())]
        return found

    def delete(self, id: str, user: str | None) -> None:
        """Its text is gone from the disk too. ResponseNotFound: it is not there, or another's."""

        def work(connection: sqlite3.Connection) -> None:
            found = connection.execute(f"DELETE {_OWN}", self._named(id, user))
            if not found.rowcount:
                raise ResponseNotFound(id)

        self._write(work)
        self._empty_journal()

    def _row(self, id: str, user: str | None) -> tuple[Json, list[Json]]:
        row = self._read(
            lambda connection: connection.execute(
                f"SELECT response, items {_OWN}", self._named(id, user)
            ).fetchone()
        )
        if row is None:
            raise ResponseNotFound(id)
        return json.loads(row[0]), json.loads(row[1])

    def _named(self, id: str, user: str | None) -> dict[str, Any]:
        oldest = time.time() - self._max_age
        return {"id": storable(id), "user": user or "", "oldest": oldest}

    def _make_room(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "DELETE FROM responses WHERE created < ?", (time.time() - self._max_age,)
        )
        while self._too_full(connection):
            connection.execute(
                "DELETE FROM responses WHERE number = (SELECT min(number) FROM responses"
                " WHERE user = (SELECT user FROM responses GROUP BY user"
                " ORDER BY sum(size) DESC LIMIT 1))"
            )

    def _too_full(self, connection: sqlite3.Connection) -> bool:
        counted = "SELECT count(*), coalesce(sum(size), 0) FROM responses"
        count, size = connection.execute(counted).fetchone()
        return bool(count > self._max_responses or size > self._max_bytes)
