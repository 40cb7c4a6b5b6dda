"""Requests of /v1/chat/completions, and what they mean to a `Turn`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gptoss_onnx.assistant.chat_history import ChatMessage, history, instructions
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.json_body import WHOLE, Body
from gptoss_onnx.assistant.requests import (
    Effort,
    PenaltyFields,
    SamplingFields,
    ToolName,
    Unsupported,
    effort,
    options,
    stops,
)
from gptoss_onnx.assistant.turn import JsonFormat, Named, Turn
from gptoss_onnx.runtimes.harmony import SystemPrompt, Tool
from gptoss_onnx.runtimes.package import Package


class Function(Body):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class JsonSchema(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(Body):
    include_usage: bool | None = None


class Reasoning(Body):
    effort: Effort | None = None


class ChatRequest(SamplingFields, PenaltyFields):
    """`model` is one of /v1/models. Other fields than these are passed over."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31), WHOLE] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31), WHOLE] | None = None
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: (
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
        | None
    ) = None
    functions: Unsupported = None  # what tools replaced
    function_call: Unsupported = None
    audio: Unsupported = None

    def turn(self, package: Package, timeout: float | None = None) -> Turn:
        """ApiError for what contradicts itself."""
        tools = [item.function for item in self.tools or ()]
        reasoning = self.reasoning.effort if self.reasoning else None
        limit = self.max_completion_tokens or self.max_tokens
        return Turn(
            history(self.messages),
            SystemPrompt(reasoning=effort(self.reasoning_effort, reasoning)),
            instructions(self.messages),
            [Tool(tool.name, tool.description, tool.parameters) for tool in tools],
            frozenset(tool.name for tool in tools if tool.strict),
            self._choice([tool.name for tool in tools]),
            self.parallel_tool_calls is not False,
            self._format(),
            options(package, self, limit),
            stops(self.stop),
            self.n or 1,
            (self.top_logprobs or 0) if self.logprobs else None,
            timeout,
        )

    def _choice(self, names: list[str]) -> Literal["auto", "none", "required"] | Named:
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            if choice.function.name not in names:
                raise ApiError("it names none of the tools", param="tool_choice")
            return Named(choice.function.name)
        if choice == "required" and not names:
            raise ApiError("a tool is required, and there are none in tools", param="tool_choice")
        return choice or "auto"

    def _format(self) -> JsonFormat | None:
        asked = self.response_format
        if isinstance(asked, JsonSchemaFormat):
            found = asked.json_schema
            schema, strict = found.schema_ or {"type": "object"}, found.strict is True
            return JsonFormat(schema, found.name, found.description, strict)
        return JsonFormat() if isinstance(asked, JsonObjectFormat) else None
