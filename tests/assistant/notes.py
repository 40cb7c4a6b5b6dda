"""A small store; other processes import it without the rest of the tests, which load torch."""

from __future__ import annotations

import sqlite3
import threading
from typing import ClassVar

from gptoss_onnx.assistant.database import Database, Step


class Notes(Database):
    FILE: ClassVar[str] = "notes.sqlite"
    STEPS: ClassVar[tuple[Step, ...]] = (("CREATE TABLE notes (text TEXT NOT NULL)",),)

    def add(self, text: str) -> None:
        self._write(lambda connection: connection.execute("INSERT INTO notes VALUES (?)", (text,)))

    def all(self) -> list[str]:
        return self._read(
            lambda connection: [row[0] for row in connection.execute("SELECT text FROM notes")]
        )

    def fail_after(self, text: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO notes VALUES (?)", (text,))
            raise KeyError(text)

        self._write(work)

    def pragma(self, text: str) -> object:
        return self._here(lambda: self._connection.execute(f"PRAGMA {text}").fetchone()[0])

    def thread(self) -> int:
        return self._here(threading.get_ident)
