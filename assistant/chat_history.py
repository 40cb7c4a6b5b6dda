"""A conversation as chat completions have it, to harmony's messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from gptoss_onnx.assistant.call_ids import call_message, result_message
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.json_body import Body
from gptoss_onnx.assistant.requests import Text, Unsupported
from gptoss_onnx.runtimes.harmony import Message


class SystemMessage(Body):
    role: Literal["system"]
    content: Text


class DeveloperMessage(Body):
    role: Literal["developer"]
    content: Text


class UserMessage(Body):
    role: Literal["user"]
    content: Text


class CalledFunction(Body):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class ToolCallParam(Body):
    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Body):
    """Its reasoning has two names in use; both are understood."""

    role: Literal["assistant"]
    content: Text | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallParam] | None = None
    function_call: Unsupported = None


class ToolMessage(Body):
    role: Literal["tool"]
    content: Text
    tool_call_id: str


ChatMessage = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


def instructions(messages: Sequence[ChatMessage]) -> str | None:
    """What system and developer messages say: the model's own system message is another thing."""
    said = [m.content for m in messages if isinstance(m, SystemMessage | DeveloperMessage)]
    return "\n\n".join(said) if said else None


def history(messages: Sequence[ChatMessage]) -> list[Message]:
    """Everything else; ApiError for a result of no call."""
    shown: list[Message] = []
    calls: dict[str, Message] = {}  # of the last message with any
    results: dict[str, Message] = {}  # of those, so far
    for place, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            call_id = message.tool_call_id
            if call_id not in calls or call_id in results:
                raise ApiError(
                    f"{call_id[:80]!r} is no tool call right before it that has no result yet",
                    param=f"messages.{place}.tool_call_id",
                )
            results[call_id] = result_message(calls[call_id], message.content)
        elif isinstance(message, UserMessage | AssistantMessage):
            # In the order of the calls: two of one name are told apart by nothing else.
            shown += [results[call_id] for call_id in calls if call_id in results]
            calls, results = {}, {}
            if isinstance(message, UserMessage):
                shown.append(Message("user", message.content))
                continue
            calls = {call.id: _call(call) for call in message.tool_calls or ()}
            shown += [*_said(message, bool(calls)), *calls.values()]
    return shown + [results[call_id] for call_id in calls if call_id in results]


def _said(message: AssistantMessage, calls: bool) -> list[Message]:
    reasoning = message.reasoning or message.reasoning_content
    # Of an answer that was cut in its reasoning nothing is left to go on from.
    thought = [Message("assistant", reasoning, "analysis")] if reasoning else []
    if calls:
        preamble = Message("assistant", message.content or "", "commentary")
        return [*thought, preamble] if message.content else thought
    return [*thought, Message("assistant", message.content, "final")] if message.content else []


def _call(call: ToolCallParam) -> Message:
    return call_message(call.id, call.function.name, call.function.arguments)
