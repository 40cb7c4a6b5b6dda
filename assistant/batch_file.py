"""OpenAI's batch files: requests and answers, a JSON object a line.

The answers' file is the record of what is done: whoever starts again reads it and asks for the
rest alone. An answer counts once its line is whole, and what kill -9 cut is none.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.json_body import parse
from gptoss_onnx.assistant.security import Rules
from gptoss_onnx.runtimes.durable import sync_folder
from gptoss_onnx.runtimes.errors import UserError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_LONGEST = Rules.max_body + (1 << 16)  # bytes of a line
_START = b'{"id": "batch_req_'
_LOCKED_BYTE = 1 << 40  # on Windows a locked byte cannot be read, so it is one that is not there

Key = str | int  # a request's custom_id, or the number of a line that has none


@dataclass(frozen=True)
class Line:
    """A line of requests; with `fault`, why it is no request. `body` is JSON."""

    number: int  # from 1
    start: int  # byte
    custom_id: str | None = None
    url: str = ""
    body: bytes = b""
    fault: str | None = None

    @property
    def key(self) -> Key:
        return self.number if self.custom_id is None else self.custom_id


def read_lines(path: Path) -> Iterator[Line]:
    """One after the other, however many there are. UserError if the file cannot be read."""
    with _opened(path) as file:
        number = start = 0
        while data := file.readline(_LONGEST + 1):
            number += 1
            if data.strip():
                yield _line(number, start, data)
            start += len(data)
            while not data.endswith(b"\n") and (data := file.readline(1 << 20)):
                start += len(data)


def read_lines_at(path: Path, places: Iterable[tuple[int, int]]) -> Iterator[Line]:
    """Those of (number, start) in `places`."""
    with _opened(path) as file:
        for number, start in places:
            file.seek(start)
            yield _line(number, start, file.readline(_LONGEST + 1))


def check_requests(path: Path) -> int:
    """How many there are; UserError where two have one custom_id, as one answer would be lost."""
    places: dict[str, int] = {}
    count = 0
    for line in read_lines(path):
        count += 1
        if line.custom_id is None:
            continue
        first = places.setdefault(line.custom_id, line.number)
        if first != line.number:
            raise UserError(
                f"{path}: lines {first} and {line.number} have the same custom_id "
                f"{line.custom_id[:80]!r}: give each request its own"
            )
    return count


def _opened(path: Path) -> BinaryIO:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: no file; requests are read twice, so a pipe will not do")
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _line(number: int, start: int, data: bytes) -> Line:
    """What `data` asks for, whatever it is."""

    def wrong(why: str, custom_id: str | None = None) -> Line:
        return Line(number, start, custom_id, fault=f"line {number}{why}")

    if len(data) > _LONGEST:
        return wrong(f" is longer than {_LONGEST} bytes")
    try:
        content = parse(data.removeprefix(BOM_UTF8) if start == 0 else data)
    except ApiError as error:
        return wrong(str(error).removeprefix("the body"))
    if not isinstance(content, dict):
        return wrong(" is no JSON object")
    custom_id, body = content.get("custom_id"), content.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        return wrong(" has no custom_id, a text")
    if content.get("method") != "POST":
        return wrong(": method must be POST", custom_id)
    if content.get("url") not in URLS:
        return wrong(f": url must be one of {', '.join(URLS)}", custom_id)
    if not isinstance(body, dict):
        return wrong(": body must be a JSON object", custom_id)
    if body.get("stream"):
        return wrong(": leave out stream, answers in a file are whole", custom_id)
    return Line(number, start, custom_id, content["url"], json.dumps(body).encode())


def answered(line: Line, status: int, request_id: str, body: Any) -> bytes:
    """The answer's line to a request, be it an error that HTTP has a status for."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _answer(line, response, None)


def refused(line: Line) -> bytes:
    """The answer's line to what is no request."""
    error = {
        "code": "invalid_request",
        "message": line.fault,
        "param": None,
        "line": line.number,
    }
    return _answer(line, None, error)


def _answer(line: Line, response: Any, error: Any) -> bytes:
    content = {
        "id": f"batch_req_{secrets.token_hex(16)}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    try:
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(content).encode() + b"\n"


class Answers:
    """The file of answers, this process's alone while it is open.

    `done` has what is answered, `failed` counts those that are errors. UserError for a file that
    another process writes, that is not of this kind, or that cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[Key] = set()
        self.failed = 0
        with self._in_words():
            new = not path.exists()
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by close
            if new:
                sync_folder(path.absolute().parent)
        try:
            with self._in_words():
                self._lock()
                self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, answers: Iterable[bytes]) -> None:
        """Those that are new, on the disk when this returns."""
        data = bytearray()
        for answer in answers:
            if self._note(json.loads(answer)):
                data += answer
        with self._in_words(), memoryview(data) as left:
            written = 0
            while written < len(data):
                written += self._file.write(left[written:]) or 0
            os.fsync(self._file.fileno())

    def _note(self, answer: Any) -> bool:
        """Whether it is new. LookupError or TypeError for what is no answer."""
        custom_id, response, error = (answer[n] for n in ("custom_id", "response", "error"))
        key: Key = error["line"] if custom_id is None else custom_id
        if key in self.done:
            return False
        self.done.add(key)
        self.failed += response is None or response["status_code"] >= 400
        return True

    def _read(self) -> None:
        """What is done; the end of the file is cut back to its last whole line."""
        whole = 0
        with self.path.open("rb") as file:
            head = file.read(len(_START))
            if head and not _START.startswith(head) and head.strip(b"\0"):
                raise self._other(1)
            file.seek(0)
            number = 0
            while (data := file.readline()).endswith(b"\n"):
                number += 1
                whole += len(data)
                try:
                    self._note(json.loads(data))
                except (ValueError, LookupError, TypeError):
                    raise self._other(number) from None
        if data:
            self._file.truncate(whole)
            os.fsync(self._file.fileno())

    def _other(self, number: int) -> UserError:
        return UserError(
            f"{self.path}: line {number} is no answer of a batch: name another file for answers"
        )

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; once it can be, start again and "
                "the rest is asked for"
            ) from error

    def _lock(self) -> None:
        """Released with the process, however it ends."""
        try:
            if sys.platform == "win32":
                import msvcrt

                os.lseek(self._file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"{self.path} is being written by another process: wait for it or end it"
            ) from error
