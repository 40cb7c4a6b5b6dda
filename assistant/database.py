"""A SQLite file in the data folder, used by one thread of its own.

What a method has answered as stored is on the disk: kill -9 takes nothing of it, nor does a power
cut. Several processes (a server's replicas, `gptoss users`) use one file at once.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, ParamSpec, Self, TypeVar

from gptoss_onnx.runtimes.durable import sync_folder
from gptoss_onnx.runtimes.errors import UserError

T = TypeVar("T")
P = ParamSpec("P")
Step = tuple[str, ...]

_SETTINGS = (
    # Free pages go back to the disk with each commit. In a new file alone, and before WAL.
    "PRAGMA auto_vacuum = FULL",
    "PRAGMA journal_mode = WAL",  # readers go on while another process writes
    "PRAGMA synchronous = FULL",  # a commit is on the disk before it returns
    "PRAGMA fullfsync = ON",  # macOS's fsync alone leaves it in the drive's cache
    "PRAGMA secure_delete = ON",  # what is deleted is overwritten
    "PRAGMA wal_autocheckpoint = 256",  # pages of 4 KiB
    "PRAGMA journal_size_limit = 1048576",
)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NOT_WRITABLE = "may not be written: see whose it is, and whether its disk is read-only"
_DAMAGED = "is damaged: put a backup in its place, or move it away to begin anew"
_WORDS = {
    sqlite3.SQLITE_FULL: "was not written, its disk is full: free some space and try again",
    sqlite3.SQLITE_IOERR: "cannot be read or written, its disk is full or fails: free some space "
    "or check the disk, and try again",
    sqlite3.SQLITE_READONLY: _NOT_WRITABLE,
    sqlite3.SQLITE_PERM: _NOT_WRITABLE,
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: see whose it and its folder are",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_TOOBIG: "takes no value of this size: send less",
    **dict.fromkeys(_LOCKED, "is locked by another program: wait for it or end it, and try again"),
}


class StorageError(UserError):
    """A file of the data folder cannot be used; what was stored before still is."""


def data_folder() -> Path:
    """`GPTOSS_DATA`, else the platform's folder for a user's data."""
    if given := os.environ.get("GPTOSS_DATA"):
        return Path(given)
    from platformdirs import user_data_path

    return user_data_path("gptoss-onnx", appauthor=False)


class Database:
    """One file and its thread. Methods of stores may be called on any thread, and wait.

    Under asyncio: `await store.call(store.method, ...)`. Nothing there blocks the event loop, a
    locked file included: a call waits for a lock `wait` seconds, its time in the queue counted.
    """

    FILE: ClassVar[str]
    STEPS: ClassVar[tuple[Step, ...]]  # SQL from one version of the schema to the next

    def __init__(
        self, folder: Path | None = None, *, wait: float = 5.0, create: bool = True
    ) -> None:
        self.path = (folder or data_folder()) / self.FILE
        self._wait = wait
        self._deadline = 0.0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=self.FILE)
        try:
            self._submit(self._open, create).result()
        except BaseException:
            self._executor.shutdown()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """After what was asked for before; a second time it does nothing."""
        with suppress(StorageError):  # closed already
            self._submit(self._connection.close).result()
        self._executor.shutdown()

    async def call(self, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """A method of this store, on its thread."""
        return await asyncio.wrap_future(self._submit(method, *args, **named))

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in a transaction that sees one state of the file."""
        return self._here(self._transaction, "BEGIN", work)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in a transaction that is wholly stored, or not at all if it raises."""
        return self._here(self._transaction, "BEGIN IMMEDIATE", work)

    def _empty_journal(self) -> None:
        """What was deleted is overwritten in the file, and still stands in the journal. Where
        another process reads just then, it goes with the journal's next round."""

        def work() -> None:
            with suppress(sqlite3.DatabaseError):  # the file itself is as it should be
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

        self._here(work)

    def _here(self, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        if threading.get_ident() == self._thread:
            return method(*args, **named)
        return self._submit(method, *args, **named).result()

    def _submit(self, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> Future[T]:
        deadline = time.monotonic() + self._wait

        def work() -> T:
            self._deadline = deadline
            return method(*args, **named)

        try:
            return self._executor.submit(work)
        except RuntimeError as error:  # the executor's word for a closed one
            raise StorageError(f"{self.path} was closed: start again") from error

    def _transaction(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        with self._in_words():
            self._check_place()
            left = max(0.0, self._deadline - time.monotonic())
            connection.execute(f"PRAGMA busy_timeout = {int(left * 1000)}")
            connection.execute(begin)
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite ends some by itself
                    connection.execute("ROLLBACK")
                raise
            return result

    def _check_place(self) -> None:
        """SQLite writes on into a file that was deleted or replaced, where nobody finds it."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), self._file):
                return
        raise StorageError(f"{self.path} was moved or deleted while in use: start again")

    def _open(self, create: bool) -> None:
        self._thread = threading.get_ident()
        with self._in_words():
            _make_private(self.path, create)
            self._file = os.stat(self.path)
            self._connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            try:
                self._patiently(self._set_up)
            except BaseException:
                self._connection.close()
                raise

    def _patiently(self, work: Callable[[], None]) -> None:
        """SQLite's own waiting leaves out the change to WAL, which two new processes may make."""
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if _primary(error) not in _LOCKED or time.monotonic() > self._deadline:
                    raise
                time.sleep(0.01)

    def _set_up(self) -> None:
        for setting in _SETTINGS:
            self._connection.execute(setting)
        if self._version(self._connection) != len(self.STEPS):
            self._transaction("BEGIN IMMEDIATE", self._migrate)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """All steps and their number in one transaction."""
        version = self._version(connection)
        if version > len(self.STEPS):
            raise StorageError(
                f"{self.path} was written by a newer gptoss-onnx (version {version} of it, "
                f"{len(self.STEPS)} is known here): update gptoss-onnx"
            )
        for statement in (line for step in self.STEPS[version:] for line in step):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(self.STEPS)}")

    @staticmethod
    def _version(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = _primary(error)
            if code is None:  # the module's own: wrong use, which is for a programmer
                raise
            words = _WORDS.get(code, "cannot be used")
            raise StorageError(f"{self.path} {words} (SQLite: {error})") from error
        except FileNotFoundError as error:
            raise StorageError(f"{self.path} is not there: see GPTOSS_DATA or --data") from error
        except OSError as error:
            raise StorageError(f"{self.path} cannot be used: {error.strerror}") from error


def _primary(error: sqlite3.Error) -> int | None:
    """SQLite's code, without the details of an extended one."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _make_private(path: Path, create: bool) -> None:
    """A folder and a file that are its user's alone; SQLite gives its journal the file's mode."""
    if create and not path.parent.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
    if create and not path.exists():
        # A file that is there is never opened: closing it would drop SQLite's locks on it.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    if os.name == "posix" and os.stat(path).st_mode & 0o077:
        os.chmod(path, 0o600)


def used_bytes(connection: sqlite3.Connection) -> int:
    """Of the file, without pages that are free again."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def storable(text: str) -> str:
    """Text from a stranger as SQLite takes it: half a surrogate pair becomes "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")
