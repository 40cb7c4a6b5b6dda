"""Who used what and when, one entry a request; the oldest go first."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar

from gptoss_onnx.assistant.database import Database, Step, storable, used_bytes

_DAY = 86400.0
_LONGEST = 200  # characters of a field that a caller can choose, such as a model's name
_PAGE = 500  # entries of one read: a long one would keep SQLite's journal from being emptied


@dataclass(frozen=True)
class Entry:
    """Times are in seconds since 1970, durations in seconds. No user: nobody asked for a key."""

    user: str | None
    endpoint: str
    model: str
    request_id: str
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion's
    finish_reason: str | None = None
    verdicts: tuple[str, ...] = ()  # of content filters
    duration: float = 0.0
    at: float = field(default_factory=time.time)
    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Summary:
    """What a user used; `blocked` counts requests that a content filter ended."""

    user: str | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    blocked: int
    last_at: float


_NAMES = ", ".join(f.name for f in fields(Entry))


class UsageLog(Database):
    """Entries for `days` days, in files of `max_bytes` together; prompts and answers with `text`.

    A SQLite file like the others, and not JSON lines: replicas of a server write one log, and what
    is dropped and summed up is a statement each.
    """

    FILE: ClassVar[str] = "usage.sqlite"
    STEPS: ClassVar[tuple[Step, ...]] = (
        (
            """CREATE TABLE usage (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                user TEXT,
                endpoint TEXT NOT NULL,
                model TEXT NOT NULL,
                request_id TEXT NOT NULL,
                prompt_tokens INTEGER NOT NULL,
                cached_tokens INTEGER NOT NULL,
                completion_tokens INTEGER NOT NULL,
                reasoning_tokens INTEGER NOT NULL,
                finish_reason TEXT,
                verdicts TEXT NOT NULL,
                duration REAL NOT NULL,
                at REAL NOT NULL,
                prompt TEXT,
                answer TEXT)""",
            "CREATE INDEX usage_by_time ON usage (at)",
        ),
    )

    def __init__(
        self,
        folder: Path | None = None,
        *,
        text: bool = False,
        max_bytes: int = 64 << 20,
        days: float = 90,
        wait: float = 5.0,
        create: bool = True,
    ) -> None:
        super().__init__(folder, wait=wait, create=create)
        self._text = text
        self._max_bytes = max_bytes
        self._max_age = days * _DAY

    def add(self, entry: Entry) -> None:
        """On the disk when this returns."""
        stored = self._storable(entry)
        values = (*astuple(replace(stored, verdicts=())),)
        row = [json.dumps(entry.verdicts) if value == () else value for value in values]
        marks = ", ".join("?" * len(row))

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(f"INSERT INTO usage ({_NAMES}) VALUES ({marks})", row)
            self._drop_old(connection)

        self._write(work)

    def entries(self, since: float | None = None, user: str | None = None) -> Iterator[Entry]:
        """As they were written, from the time `since` on; of one user or of all."""
        after = 0
        while page := self.page(after, since, user):
            after = page[-1][0]
            yield from (entry for _, entry in page)

    def page(
        self, after: int = 0, since: float | None = None, user: str | None = None
    ) -> list[tuple[int, Entry]]:
        """The next 500 at most behind the entry of number `after`, each with its number."""
        rows = self._read(
            lambda connection: connection.execute(
                f"SELECT id, {_NAMES} FROM usage WHERE id > ? AND at >= ?"
                " AND (? IS NULL OR user = ?) ORDER BY id LIMIT ?",
                (after, since or 0.0, user, user, _PAGE),
            ).fetchall()
        )
        return [(number, _entry(row)) for number, *row in rows]

    def summary(self, since: float | None = None) -> list[Summary]:
        """A row a user, those who used most first."""
        sums = ", ".join(f"sum({f.name})" for f in fields(Summary) if f.name.endswith("_tokens"))
        rows = self._read(
            lambda connection: connection.execute(
                f"SELECT user, count(*), {sums}, sum(finish_reason IS 'content_filter'), max(at)"
                " FROM usage WHERE at >= ? GROUP BY user"
                " ORDER BY sum(prompt_tokens + completion_tokens) DESC, user",
                (since or 0.0,),
            ).fetchall()
        )
        return [Summary(*row) for row in rows]

    def _storable(self, entry: Entry) -> Entry:
        longest = self._max_bytes // 64  # a text is one of many, in whatever script

        def text(value: str | None) -> str | None:
            return None if value is None or not self._text else storable(value[:longest])

        def word(value: str) -> str:
            return storable(value[:_LONGEST])

        def maybe(value: str | None) -> str | None:
            return None if value is None else word(value)

        return replace(
            entry,
            user=maybe(entry.user),
            endpoint=word(entry.endpoint),
            model=word(entry.model),
            request_id=word(entry.request_id),
            finish_reason=maybe(entry.finish_reason),
            prompt=text(entry.prompt),
            answer=text(entry.answer),
        )

    def _drop_old(self, connection: sqlite3.Connection) -> None:
        """By age; and an eighth of what the file may hold once it is full, so that most calls
        find it is not. A quarter of `max_bytes` is for SQLite's journal."""
        connection.execute("DELETE FROM usage WHERE at < ?", (time.time() - self._max_age,))
        limit = self._max_bytes * 3 // 4
        if used_bytes(connection) <= limit:
            return
        oldest = "SELECT min(id) + (max(id) - min(id)) / 16 FROM usage"
        while used_bytes(connection) > limit * 7 // 8:
            if not connection.execute(f"DELETE FROM usage WHERE id <= ({oldest})").rowcount:
                break


def _entry(row: list[object]) -> Entry:
    named = dict(zip(_NAMES.split(", "), row, strict=True))
    named["verdicts"] = tuple(json.loads(str(named["verdicts"])))
    return Entry(**named)  # type: ignore[arg-type]
