"""Many streamed answers of an OpenAI-compatible server at once, for little of the processor's time.

While they run, one thread only notes when bytes came; what they say is read afterwards.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

STARTED = 12  # pieces a stream has brought once it surely decodes: headers and a role are some
PATIENCE = 300.0  # seconds without a byte
TICK = 0.01  # seconds between looks at who is overdue


@dataclass
class Call:
    """One POST and what came back. Times are `time.perf_counter()`, in seconds."""

    address: tuple[str, int]
    request: bytes
    hang_up_after: float | None = None  # seconds from sending it
    waits_for: Sequence[Call] = ()  # sent once these decode, or have ended
    raw: bytearray = field(default_factory=bytearray)
    marks: list[tuple[float, int]] = field(default_factory=list)  # when, bytes by then
    started: float = 0.0
    ended: float = 0.0
    error: str | None = None

    def due(self) -> bool:
        return all(call.ended or len(call.marks) >= STARTED for call in self.waits_for)

    def deadline(self) -> float:
        if self.hang_up_after is not None:
            return self.started + self.hang_up_after
        return (self.marks[-1][0] if self.marks else self.started) + PATIENCE


def drive(clients: Iterable[Iterator[Call]]) -> None:
    """Send each client's calls one after the other, all clients at once, until none has more."""
    waiting: list[tuple[Call, Iterator[Call]]] = []
    look = 0.0

    def advance(client: Iterator[Call]) -> None:
        waiting.extend((call, client) for call in [next(client, None)] if call is not None)

    with selectors.DefaultSelector() as selector:
        for client in clients:
            advance(client)
        while waiting or selector.get_map():
            for call, client in [entry for entry in waiting if entry[0].due()]:
                waiting.remove((call, client))
                if (connection := _send(call)) is not None:
                    selector.register(connection, selectors.EVENT_READ, (call, client))
                else:
                    advance(client)
            for key, _ in selector.select(TICK):
                call, client = key.data
                if not _receive(call, key.fileobj):
                    _close(selector, key.fileobj)
                    advance(client)
            if (now := time.perf_counter()) >= look:
                look = now + TICK
                for key in _overdue(selector, now):
                    call, client = key.data
                    call.ended = now
                    call.error = None if call.hang_up_after is not None else "the server is silent"
                    _close(selector, key.fileobj)
                    advance(client)


def _overdue(selector: selectors.BaseSelector, now: float) -> list[selectors.SelectorKey]:
    return [key for key in selector.get_map().values() if key.data[0].deadline() < now]


def _send(call: Call) -> socket.socket | None:
    call.started = time.perf_counter()
    try:
        connection = socket.create_connection(call.address, timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(call.request)
    except OSError as error:
        call.ended, call.error = time.perf_counter(), str(error)
        return None
    connection.setblocking(False)
    return connection


def _receive(call: Call, connection: socket.socket) -> bool:
    """Whether more may come."""
    try:
        piece = connection.recv(1 << 16)
    except OSError as error:
        piece, call.error = b"", str(error)
    now = time.perf_counter()
    if piece:
        call.raw += piece
        call.marks.append((now, len(call.raw)))
    else:
        call.ended = now
    return bool(piece)


def _close(selector: selectors.BaseSelector, connection: socket.socket) -> None:
    selector.unregister(connection)
    connection.close()


@dataclass(frozen=True)
class Server:
    url: str
    model: str
    api: str  # "chat" or "completions"
    key: str | None = None

    @property
    def label(self) -> str:
        return f"{self.model}, {urlsplit(self.url).netloc}"

    def call(self, prompt: str | list[dict[str, str]], new_tokens: int, **how: Any) -> Call:
        """A streamed answer at temperature 0. `prompt` of a chat: its messages, or one question."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": new_tokens, "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.api == "chat":
            chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            path, body = "chat/completions", body | {"messages": chat}
        else:  # as many tokens from every server that knows `ignore_eos`
            path, body = "completions", body | {"prompt": prompt, "ignore_eos": True}
        at = urlsplit(self.url)
        content = json.dumps(body).encode()
        head = [
            f"POST {at.path.rstrip('/').removesuffix('/v1')}/v1/{path} HTTP/1.1",
            f"Host: {at.netloc}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            "Connection: close",
            *([f"Authorization: Bearer {self.key}"] if self.key else []),
        ]
        request = "\r\n".join([*head, "", ""]).encode() + content
        return Call((at.hostname or "127.0.0.1", at.port or 80), request, **how)


@dataclass
class Answer:
    """What a call brought. `times`: when each piece of text came."""

    call: Call
    texts: dict[str, str] = field(default_factory=dict)  # content, reasoning ... or text
    times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None

    @property
    def first_token(self) -> float:
        return self.times[0] - self.call.started

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    @property
    def said(self) -> tuple[dict[str, str], str | None]:
        return self.texts, self.finish_reason


def read(call: Call) -> Answer:
    answer = Answer(call, error=call.error)
    head, _, body = bytes(call.raw).partition(b"\r\n\r\n")
    if answer.error:
        return answer
    if not head.startswith(b"HTTP/1.1 200 "):
        answer.error = (head.split(b"\r\n")[0] + b" " + body[:300]).decode(errors="replace")
        return answer
    for moment, event in _events(call, head):
        _add(answer, moment, event)
    if answer.finish_reason is None and answer.error is None:
        answer.error = "the answer ends without a finish_reason"
    return answer


def _add(answer: Answer, moment: float, event: dict[str, Any]) -> None:
    if event.get("error"):
        answer.error = json.dumps(event["error"])
    for choice in event.get("choices", ()):
        said = choice.get("delta") or {"text": choice.get("text")}
        # Of a model with random weights most tokens have no text; some servers tell of them too.
        told = "text" in said and (not answer.times or choice.get("finish_reason") is None)
        for kind, text in said.items():
            if kind != "role" and text:
                text = text if isinstance(text, str) else json.dumps(text)
                answer.texts[kind] = answer.texts.get(kind, "") + text
                told = True
        if told and (not answer.times or answer.times[-1] != moment):
            answer.times.append(moment)
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    if usage := event.get("usage"):
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.new_tokens = usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _events(call: Call, head: bytes) -> Iterator[tuple[float, dict[str, Any]]]:
    """Server-sent events and when their last bytes came."""
    ends = [end for _, end in call.marks]
    text = b""
    for piece, end in _pieces(call.raw, len(head) + 4, b"chunked" in head.lower()):
        *complete, text = (text + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        moment = call.marks[bisect_left(ends, end)][0]
        for event in complete:
            data = b"".join(
                line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")
            )
            if data and data != b"[DONE]":
                yield moment, json.loads(data)


def _pieces(raw: bytearray, start: int, chunked: bool) -> Iterator[tuple[bytes, int]]:
    """The body's pieces and where in `raw` each ends."""
    if not chunked:
        yield bytes(raw[start:]), len(raw)
        return
    while (line := raw.find(b"\r\n", start)) >= 0:
        size = int(raw[start:line].split(b";")[0], 16)
        if not size or line + 2 + size > len(raw):
            return
        yield bytes(raw[line + 2 : line + 2 + size]), line + 2 + size
        start = line + 4 + size
