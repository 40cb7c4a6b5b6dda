"""Users and their API keys."""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

from gptoss_onnx.assistant.database import Database, Step, StorageError, storable
from gptoss_onnx.runtimes.errors import UserError

PREFIX = "gptoss_"
SHOWN = len(PREFIX) + 6  # characters of a key that lists show: 36 of its 256 bits
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SEEN_EVERY = 60.0  # seconds between two writes of a user's last use


@dataclass(frozen=True)
class User:
    """Times are in seconds since 1970."""

    name: str
    key_start: str
    created: float
    last_used: float | None = None
    revoked: float | None = None


class Users(Database):
    """Names and hashed keys. A name is one user's, whatever its case."""

    FILE: ClassVar[str] = "users.sqlite"
    STEPS: ClassVar[tuple[Step, ...]] = (
        (
            """CREATE TABLE users (
                name TEXT PRIMARY KEY COLLATE NOCASE,
                key_start TEXT NOT NULL,
                digest BLOB NOT NULL,
                created REAL NOT NULL,
                last_used REAL,
                revoked REAL)""",
            "CREATE INDEX users_by_key ON users (key_start)",
        ),
    )

    def __init__(
        self, folder: Path | None = None, *, wait: float = 5.0, create: bool = True
    ) -> None:
        super().__init__(folder, wait=wait, create=create)
        self._seen: dict[str, float] = {}  # last uses that are written, or were tried to

    def add(self, name: str) -> str:
        """A new key, which nobody can show again. A revoked name may be added anew."""
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name[:80]!r} is no user's name: take up to 64 of A-Z, a-z, 0-9 and . _ @ -, "
                "the first a letter or digit"
            )
        key = PREFIX + secrets.token_urlsafe(32)

        def work(connection: sqlite3.Connection) -> None:
            old = connection.execute("SELECT name, revoked FROM users WHERE name = ?", (name,))
            if (row := old.fetchone()) and row[1] is None:
                raise UserError(
                    f"there is a user {row[0]} already: take another name, or revoke it"
                )
            connection.execute(
                "INSERT OR REPLACE INTO users (name, key_start, digest, created)"
                " VALUES (?, ?, ?, ?)",
                (row[0] if row else name, key[:SHOWN], _digest(key), time.time()),
            )

        self._write(work)
        return key

    def find(self, key: str) -> User | None:
        """Whose key it is; None of a wrong or revoked one."""
        return self._here(self._find, key)

    def _find(self, key: str) -> User | None:
        # The characters that lists show find the row; only the rest of the key is secret.
        rows = self._read(
            lambda connection: connection.execute(
                f"SELECT {_COLUMNS}, digest FROM users WHERE key_start = ? AND revoked IS NULL",
                (storable(key[:SHOWN]),),
            ).fetchall()
        )
        digest = _digest(key)
        for *columns, known in rows:
            if secrets.compare_digest(known, digest):
                user = User(*columns)
                self._note_use(user.name)
                return user
        return None

    def all(self) -> list[User]:
        """All, revoked ones too, the oldest first."""
        rows = self._read(
            lambda connection: connection.execute(
                f"SELECT {_COLUMNS} FROM users ORDER BY created, name"
            ).fetchall()
        )
        return [User(*row) for row in rows]

    def revoke(self, name: str) -> User:
        """The user's key is refused from now on, in every process."""

        def work(connection: sqlite3.Connection) -> User:
            selected = f"SELECT {_COLUMNS} FROM users WHERE name = ?"
            row = connection.execute(selected, (storable(name),)).fetchone()
            if row is None:
                raise UserError(f"there is no user {name[:80]!r}: see `gptoss users list`")
            if row[-1] is not None:
                raise UserError(f"{row[0]} is revoked already")
            connection.execute("UPDATE users SET revoked = ? WHERE name = ?", (time.time(), row[0]))
            return User(*connection.execute(selected, (row[0],)).fetchone())

        return self._write(work)

    def _note_use(self, name: str) -> None:
        """Once a minute, and no request waits or fails for it."""
        now = time.time()
        if abs(now - self._seen.get(name, 0.0)) < _SEEN_EVERY:
            return
        self._seen[name] = now
        self._deadline = 0.0
        with suppress(StorageError):
            self._write(
                lambda connection: connection.execute(
                    "UPDATE users SET last_used = ? WHERE name = ?", (now, name)
                )
            )


_COLUMNS = "name, key_start, created, last_used, revoked"


def _digest(key: str) -> bytes:
    # A slow hash guards passwords, which can be guessed. A key is 256 random bits: nobody guesses
    # one, however fast the hash, and every request pays for it.
    return sha256(key.encode("utf-8", "surrogatepass")).digest()
