"""Evaluation text: chat JSONL or plain text as token ids, and which of them count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Harmony, Message, SystemPrompt

SYSTEM = SystemPrompt(date="2026-01-01")  # fixed: figures of two days must agree


@dataclass(frozen=True)
class Text:
    """What a file says; `where` is its path, or its name in a checkpoint."""

    where: str
    content: str

    @property
    def name(self) -> str:
        return PurePath(self.where).name

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode("utf-8")).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Text:
        """UserError for a file that cannot be read."""
        try:
            return cls(str(path), path.read_bytes().decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error

    @classmethod
    def beside(cls, checkpoint: Checkpoint, name: str) -> Text | None:
        """A text that comes with a checkpoint's weights; None where there is none."""
        content = checkpoint.text(name)
        return None if content is None else cls(f"{checkpoint.place}/{name}", content)


@dataclass(frozen=True)
class Span:
    """Tokens ids[start:stop] that count, each predicted from the one before."""

    start: int
    stop: int
    channel: str


@dataclass(frozen=True)
class Passage:
    """A conversation or a piece of plain text, no longer than the context."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    language: str

    @property
    def tokens(self) -> int:
        """How many of its tokens count."""
        return sum(span.stop - span.start for span in self.spans)


def read_passages(path: Path | Text, harmony: Harmony, context_length: int) -> list[Passage]:
    """Passages of a file: `.jsonl` has a conversation or a text a line, any other is plain text.

    A conversation is `{"messages": [{"role", "content", "analysis"?}, ...], "language"?,
    "instructions"?}`, a text `{"text", "language"?}`. Only what the assistant says counts; of plain
    text, all but the first token. Text longer than `context_length` is cut into pieces.

    Raises UserError for a file that cannot be read, a line that is neither, a conversation longer
    than the context, and a file without a token that counts.
    """
    passages: list[Passage] = []
    text = path if isinstance(path, Text) else Text.read(path)
    for where, row in _rows(text):
        if "text" in row:
            passages += _text(row, harmony, context_length)
        else:
            passages.append(_conversation(row, where, harmony, context_length))
    if not any(passage.tokens for passage in passages):
        raise UserError(
            f"{text.where}: holds no token to evaluate; give it text or assistant messages"
        )
    return passages


def read_conversations(
    path: Path | Text,
) -> Iterator[tuple[str, list[Message], Mapping[str, Any]]]:
    """(where, messages, the line) of every conversation in a chat JSONL file."""
    for where, row in _rows(path if isinstance(path, Text) else Text.read(path)):
        if "messages" in row:
            yield where, _messages(row, where), row


def _rows(text: Text) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not text.name.endswith(".jsonl"):
        yield text.where, {"text": text.content.replace("\r\n", "\n")}
        return
    # JSON may hold other line separators.
    for number, line in enumerate(text.content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{text.where}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: is not JSON ({error})") from error
        if not isinstance(row, dict) or not ("messages" in row or isinstance(row.get("text"), str)):
            raise UserError(f'{where}: has neither "messages" nor "text"')
        yield where, row


def _text(row: Mapping[str, Any], harmony: Harmony, context: int) -> Iterator[Passage]:
    ids = harmony.tokenizer.encode(row["text"])
    for start in range(0, len(ids), context):
        piece = tuple(ids[start : start + context])
        yield Passage(piece, (Span(1, len(piece), "text"),), str(row.get("language", "text")))


def _conversation(row: Mapping[str, Any], where: str, harmony: Harmony, context: int) -> Passage:
    ids = harmony.render([], system=SYSTEM, instructions=row.get("instructions"), reply=False)
    opened = len(harmony.render([], system=None))  # <|start|>assistant: given, not predicted
    spans: list[Span] = []
    messages = _messages(row, where)
    for message in messages:
        said = harmony.render([message], system=None, reply=False)
        if message.role == "assistant":
            start = len(ids) + (opened if not _follows_analysis(spans, len(ids)) else 0)
            spans.append(Span(start, len(ids) + len(said), message.channel or "final"))
        ids += said
    if messages and (messages[-1].role, messages[-1].channel) == ("assistant", "final"):
        ids[-1] = harmony.tokenizer.special("<|return|>")  # what a model ends its reply with
    if len(ids) > context:
        raise UserError(
            f"{where}: the conversation has {len(ids)} tokens, the context {context}; shorten it"
        )
    return Passage(tuple(ids), tuple(spans), str(row.get("language", "unknown")))


def _follows_analysis(spans: list[Span], position: int) -> bool:
    """Whether the assistant goes on speaking: then it opens the message itself."""
    return bool(spans) and spans[-1].stop == position and spans[-1].channel == "analysis"


def _messages(row: Mapping[str, Any], where: str) -> list[Message]:
    """Messages with the reasoning of the last answer only, as a model is shown them."""
    rows = row["messages"]
    try:
        if not isinstance(row.get("instructions", ""), str):
            raise TypeError("instructions are text")
        last = max((i for i, m in enumerate(rows) if m["role"] == "assistant"), default=-1)
        messages = []
        for place, entry in enumerate(rows):
            role, content = entry["role"], entry["content"]
            if not isinstance(role, str) or not isinstance(content, str):
                raise TypeError("role and content are text")
            if role != "assistant":
                messages.append(Message(role, content))
                continue
            if not isinstance(entry.get("analysis") or "", str):
                raise TypeError("analysis is text")
            if entry.get("analysis") and place == last:
                messages.append(Message("assistant", entry["analysis"], "analysis"))
            messages.append(Message("assistant", content, entry.get("channel", "final")))
    except KeyError as error:
        raise UserError(f"{where}: a message has no {error}") from error
    except (TypeError, AttributeError) as error:
        raise UserError(
            f'{where}: a message needs "role" and "content" as text ({error})'
        ) from error
    return messages
