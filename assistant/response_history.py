"""A conversation as the Responses API has it, a list of items, to harmony's messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema

from gptoss_onnx.assistant.call_ids import call_message, result_message
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.json_body import Body
from gptoss_onnx.assistant.requests import joined
from gptoss_onnx.runtimes.harmony import Message

_PART = {
    "type": "object",
    "properties": {
        "type": {"enum": ["input_text", "output_text"]},
        "text": {"type": "string"},
    },
    "required": ["type", "text"],
}
# Text, or a list of text parts, which are joined by line feeds.
ItemText = Annotated[
    str,
    BeforeValidator(joined),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]}),
]


class InputMessage(Body):
    """`phase`: of an assistant's message, whether calls follow it or it is the answer."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ItemText
    phase: Literal["commentary", "final_answer"] | None = None
    id: str | None = None


class FunctionCallItem(Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None


class FunctionCallOutput(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: ItemText
    id: str | None = None


class ReasoningText(Body):
    type: Literal["reasoning_text", "text"]
    text: str


class ReasoningItem(Body):
    """As this server answered it; summaries and what others encrypted are passed over."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    id: str | None = None


class ItemReference(Body):
    """To an item of an answer that is stored."""

    type: Literal["item_reference"]
    id: str


KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _with_type(value: Any) -> Any:
    """Two types may be left out; ValueError for one that is none of ours."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind is None:
        kind = "item_reference" if "id" in value and "role" not in value else "message"
    if kind not in KINDS:
        raise ValueError(f"items of type {str(kind)[:40]!r} are not supported: take {_KNOWN}")
    return {**value, "type": kind}


_KNOWN = ", ".join(KINDS)
Item = Annotated[
    InputMessage | FunctionCallItem | FunctionCallOutput | ReasoningItem | ItemReference,
    Field(discriminator="type"),
    BeforeValidator(_with_type),
]
_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


def items_of(stored: Sequence[Any]) -> list[Item]:
    """Of a store, what was sent and what was answered."""
    return _ITEMS.validate_python(stored)


def as_items(sent: Sequence[Item]) -> list[dict[str, Any]]:
    """Items of a request in the form in which the API lists them."""
    return [_listed(item) | ({"id": item.id} if item.id else {}) for item in sent]


def _listed(item: Item) -> dict[str, Any]:
    found: dict[str, Any] = {"type": item.type, "status": "completed"}
    if isinstance(item, InputMessage):
        said: dict[str, Any] = {"type": "input_text", "text": item.content}
        if item.role == "assistant":
            said = {"type": "output_text", "text": item.content, "annotations": []}
        found |= {"role": item.role, "content": [said]}
        return found | ({"phase": item.phase} if item.phase else {})
    if isinstance(item, ReasoningItem):
        thought = [part.model_dump() for part in item.content or ()]
        return found | {"summary": [], "content": thought}
    return found | item.model_dump(exclude={"id"})


def instructions(own: str | None, items: Iterable[Item]) -> str | None:
    """A request's own, and what system and developer messages say."""
    leading = ("system", "developer")
    said = [i.content for i in items if isinstance(i, InputMessage) and i.role in leading]
    said = [own, *said] if own else said
    return "\n\n".join(said) if said else None


@dataclass
class _Calls:
    """Made at once, each with its result when there is one."""

    made: list[Message] = field(default_factory=list)
    results: dict[int, Message] = field(default_factory=dict)

    def messages(self) -> list[Message]:
        # Results in the order of the calls: two of one name are told apart by nothing else.
        return self.made + [self.results[place] for place in sorted(self.results)]


def history(earlier: Sequence[Item], sent: Sequence[Item]) -> list[Message]:
    """Everything but instructions; ApiError for an output in `sent` of no call.

    Reasoning that nothing follows is left out: of an answer that was cut in it there is nothing to
    go on from.
    """
    shown: list[Message | _Calls] = []
    thoughts: list[Message] = []
    calls: dict[str, tuple[_Calls, int]] = {}
    open_calls: _Calls | None = None  # those right before this item
    items = [*earlier, *sent]
    for place, item in enumerate(items):
        if isinstance(item, FunctionCallItem):
            if open_calls is None:
                open_calls = _Calls()
                shown += [*thoughts, open_calls]
                thoughts = []
            calls[item.call_id] = open_calls, len(open_calls.made)
            open_calls.made.append(call_message(item.call_id, item.name, item.arguments))
            continue
        open_calls = None
        if isinstance(item, FunctionCallOutput):
            _add_result(calls, item, place - len(earlier))
        elif isinstance(item, ReasoningItem):
            text = "\n".join(part.text for part in item.content or ())
            thoughts += [Message("assistant", text, "analysis")] if text else []
        elif isinstance(item, InputMessage) and item.role == "user":
            thoughts = []
            shown.append(Message("user", item.content))
        elif isinstance(item, InputMessage) and item.role == "assistant" and item.content:
            shown += [*thoughts, Message("assistant", item.content, _channel(items, place))]
            thoughts = []
    found: list[Message] = []
    for part in shown:
        found += part.messages() if isinstance(part, _Calls) else [part]
    return found


def _add_result(calls: dict[str, tuple[_Calls, int]], item: FunctionCallOutput, place: int) -> None:
    group, number = calls.get(item.call_id, (_Calls(), 0))
    if not group.made or number in group.results:
        raise ApiError(
            f"{item.call_id[:80]!r} is no function call before it that has no output yet",
            param=f"input.{place}.call_id",
        )
    group.results[number] = result_message(group.made[number], item.output)


def _channel(items: Sequence[Item], place: int) -> str:
    """Of an assistant's message that does not say it, whether a call follows."""
    item = items[place]
    if isinstance(item, InputMessage) and item.phase is not None:
        return "commentary" if item.phase == "commentary" else "final"
    following = place + 1
    while following < len(items) and isinstance(items[following], ReasoningItem):
        following += 1
    called = following < len(items) and isinstance(items[following], FunctionCallItem)
    return "commentary" if called else "final"
