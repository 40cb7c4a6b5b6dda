"""A turn's pieces as the Responses API's output items, and the events that tell of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal

from gptoss_onnx.assistant.chat_completions import Deltas
from gptoss_onnx.assistant.choice import Piece, TurnUsage
from gptoss_onnx.runtimes.tokenizer import Tokenizer

Event = dict[str, Any]
Json = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]

# What each part of a message is as an item, and its text in the names of events.
_PREFIXES = {"reasoning": "rs", "content": "msg", "call": "fc"}
_TEXTS = {
    "reasoning": "reasoning_text",
    "content": "output_text",
    "call": "function_call_arguments",
}
_ITEM_ID = re.compile(r"(?:rs|msg|fc)_([0-9a-f]{64})_[0-9]+")


class Output:
    """One reply's items: each message that the model writes is one, in its order."""

    def __init__(self, response_id: str, tokenizer: Tokenizer, logprobs: bool) -> None:
        """`logprobs`: whether those of the pieces' tokens are told."""
        self.items: list[Json] = []
        self._response_id = response_id
        self._logprobs = Deltas(tokenizer) if logprobs else None
        self._part = ""  # of the open item, "" for none
        self._texts: list[str] = []
        self._told: list[Any] = []  # log probabilities

    def add(self, piece: Piece) -> list[Event]:
        events: list[Event] = []
        if piece.begins or not self._part:
            events = self.finish("completed") + self._begin(piece)
        told = list(self._logprobs.of(piece)[1]) if self._logprobs else []
        self._texts.append(piece.text)
        self._told += told
        if piece.text:
            others = {"logprobs": told} if self._part == "content" else {}
            events.append(self._text_event("delta", delta=piece.text, **others))
        return events

    def finish(self, status: Status) -> list[Event]:
        """End the open item. Of a call that was cut nobody is told that its arguments are done."""
        if not self._part:
            return []
        text, item = "".join(self._texts), self.items[-1]
        item["status"] = status
        events = []
        if self._part == "call":
            item["arguments"] = text
            if status == "completed":
                events.append(self._text_event("done", arguments=text))
        else:
            part = self._content(text, self._told)
            item["content"] = [part]
            others = {"logprobs": self._told} if self._part == "content" else {}
            events.append(self._text_event("done", text=text, **others))
            events.append(self._event("response.content_part.done", content_index=0, part=part))
        index = len(self.items) - 1
        done = {"type": "response.output_item.done", "output_index": index, "item": item}
        self._part = ""
        return [*events, done]

    def _begin(self, piece: Piece) -> list[Event]:
        index = len(self.items)
        self._part, self._texts, self._told = piece.part, [], []
        item_id = f"{_PREFIXES[piece.part]}_{self._response_id.removeprefix('resp_')}_{index}"
        item: Json = {"id": item_id, "status": "in_progress", **_described(piece)}
        self.items.append(item)
        added = {
            "type": "response.output_item.added",
            "output_index": index,
            "item": dict(item),  # as it is now
        }
        if piece.part == "call":
            return [added]
        part = self._content("", [])
        return [added, self._event("response.content_part.added", content_index=0, part=part)]

    def _content(self, text: str, told: list[Any]) -> Json:
        content: Json = {"type": _TEXTS[self._part], "text": text}
        if self._part == "content":
            content |= {"annotations": [], "logprobs": told}
        return content

    def _text_event(self, what: str, **fields: Any) -> Event:
        if self._part != "call":
            fields["content_index"] = 0
        return self._event(f"response.{_TEXTS[self._part]}.{what}", **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": kind, **place, **fields}


def _described(piece: Piece) -> Json:
    if piece.part == "call" and piece.call is not None:
        name = {"call_id": piece.call.id, "name": piece.call.name}
        return {"type": "function_call", **name, "arguments": ""}
    if piece.part == "reasoning":
        return {"type": "reasoning", "summary": [], "content": []}
    phase = "commentary" if piece.event.kind == "commentary" else "final_answer"
    return {"type": "message", "role": "assistant", "phase": phase, "content": []}


def response_of(item_id: str) -> str | None:
    """The id of the response that an item was answered in; None if it is none of ours."""
    found = _ITEM_ID.fullmatch(item_id)
    return f"resp_{found[1]}" if found else None


class Numbered:
    """Events as a stream has them, each with its number."""

    def __init__(self) -> None:
        self._next = 0

    def encode(self, events: Iterable[Event]) -> bytes:
        return b"".join(map(self._encode, events))

    def _encode(self, event: Event) -> bytes:
        numbered = {**event, "sequence_number": self._next}
        self._next += 1
        # ASCII: what is quoted of a request may hold half a character.
        return f"event: {event['type']}\ndata: {json.dumps(numbered)}\n\n".encode()


def usage_of(usage: TurnUsage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        # Whatever is written to the cache costs nothing here.
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
