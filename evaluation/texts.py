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

_INSTRUCTING = ("system", "developer")
_REASONING = ("analysis", "thinking", "reasoning_content")  # ours, the template's, other servers'
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
        except FileNotFoundError:
            raise UserError(f"{path}: cannot be read: no such file; give a text") from None
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

    A conversation is `{"messages": [{"role", "content", "thinking"?}, ...], "language"?,
    "instructions"?}`, where `system` or `developer` may come first as instructions; a text
    `{"text", "language"?}`. Only what the assistant says counts; of plain
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
            messages, instructions = _conversation_of(row, where)
            yield where, messages, {**row, "instructions": instructions}


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
    messages, instructions = _conversation_of(row, where)
    ids = harmony.render([], system=SYSTEM, instructions=instructions, reply=False)
    opened = len(harmony.render([], system=None))  # <|start|>assistant: given, not predicted
    spans: list[Span] = []
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


def _conversation_of(row: Mapping[str, Any], where: str) -> tuple[list[Message], str | None]:
    """Messages with the reasoning of the last answer only, as a model is shown them, and
    instructions: what `system` and `developer` say before the first turn, as the chat template
    has it."""
    rows = row["messages"]
    try:
        told = [_text_of(row["instructions"])] if row.get("instructions") is not None else []
        while rows and rows[0]["role"] in _INSTRUCTING:
            told.append(_text_of(rows[0]["content"]))
            rows = rows[1:]
        last = max((i for i, m in enumerate(rows) if m["role"] == "assistant"), default=-1)
        messages = []
        for place, entry in enumerate(rows):
            messages += _said(entry, where, place == last)
    except KeyError as error:
        raise UserError(f"{where}: a message has no {error}") from error
    except (TypeError, AttributeError) as error:
        raise UserError(
            f'{where}: a message needs "role" and "content" as text ({error})'
        ) from error
    return messages, "\n\n".join(told) if told else None


def _said(entry: Mapping[str, Any], where: str, is_last: bool) -> list[Message]:
    """A message, with its reasoning before it where `is_last`."""
    role = entry["role"]
    if not isinstance(role, str):
        raise TypeError("role and content are text")
    if role in _INSTRUCTING:
        raise UserError(
            f"{where}: a {role} message after the first turn, which the chat template passes over; "
            "put what it says into the first message, or leave the conversation out"
        )
    if entry.get("tool_calls") or role in ("tool", "function"):
        raise UserError(
            f"{where}: tool calls are not read from chat files; leave the conversation out"
        )
    content = _text_of(entry["content"])
    if role != "assistant":
        return [Message(role, content)]
    thoughts = [_text_of(entry[key]) for key in _REASONING if entry.get(key)]
    if len(set(thoughts)) > 1:
        raise UserError(f"{where}: a message has two kinds of reasoning; keep one of them")
    channel = entry.get("channel", "final")
    reasoning = [Message(role, thoughts[0], "analysis")] if thoughts and is_last else []
    return [*reasoning, Message(role, content, channel)]


def _text_of(content: Any) -> str:
    """Text, or parts of text as chat templates take them."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TypeError("role and content are text")
    return content
