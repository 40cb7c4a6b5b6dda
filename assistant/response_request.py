"""Requests of /v1/responses, and what they mean to a `Turn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gptoss_onnx.assistant.chat_request import (
    Function,
    JsonObjectFormat,
    JsonSchema,
    Reasoning,
    TextFormat,
)
from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.json_body import WHOLE, Body
from gptoss_onnx.assistant.requests import (
    PenaltyFields,
    SamplingFields,
    Unsupported,
    effort,
    options,
)
from gptoss_onnx.assistant.response_history import Item, history, instructions
from gptoss_onnx.assistant.turn import JsonFormat, Named, Turn
from gptoss_onnx.runtimes.harmony import SystemPrompt, Tool
from gptoss_onnx.runtimes.package import Package

LOGPROBS = "message.output_text.logprobs"


def _functions_alone(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise ValueError(
            f"tools of type {kind[:40]!r} are not supported: declare functions, and call them "
            "yourself"
        )
    return value


def _no_background(value: Any) -> Any:
    if value is not None and value is not False:  # 0 would be taken for it
        raise ValueError("answers are not made in the background: leave it out, and take stream")
    return value


def _no_truncation(value: Any) -> Any:
    if value == "auto":
        raise ValueError(
            "nothing of a conversation is left out here: take disabled, and send less when it is "
            "too long"
        )
    return value


class _OrText:
    """In a schema, beside what the field is."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(core)]}


def _as_items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError("it must be a text or a list of items")
    return value


class ResponseTool(Function):
    type: Literal["function"]


class ResponseToolName(Body):
    type: Literal["function"]
    name: str


class ResponseJsonSchema(JsonSchema):
    type: Literal["json_schema"]


class TextConfig(Body):
    format: (
        Annotated[TextFormat | JsonObjectFormat | ResponseJsonSchema, Field(discriminator="type")]
        | None
    ) = None


Key = Annotated[str, Field(max_length=64)]
MetadataText = Annotated[str, Field(max_length=512)]


class ResponseRequest(SamplingFields, PenaltyFields):
    """`model` is one of /v1/models. Other fields than these are passed over.

    A tool or a schema is strict where it says `strict: true`, and not where it says nothing.
    """

    model: str
    input: Annotated[
        list[Item],
        Field(min_length=1),
        BeforeValidator(_as_items),
        _OrText(),
    ]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=256)] | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=1 << 31), WHOLE] | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: (
        Annotated[
            list[Annotated[ResponseTool, BeforeValidator(_functions_alone)]], Field(max_length=128)
        ]
        | None
    ) = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | ResponseToolName | None,
        BeforeValidator(_functions_alone),
    ] = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[Key, MetadataText], Field(max_length=16)] | None = None
    user: str | None = None
    truncation: Annotated[Literal["disabled"] | None, BeforeValidator(_no_truncation)] = None
    background: Annotated[Literal[False] | None, BeforeValidator(_no_background)] = None
    conversation: Unsupported = None
    prompt: Unsupported = None  # a template that OpenAI keeps

    def turn(
        self,
        package: Package,
        earlier: Sequence[Item],
        sent: Sequence[Item],
        timeout: float | None = None,
    ) -> Turn:
        """`sent` is the input without references, `earlier` what it goes on from.

        ApiError for what contradicts itself.
        """
        tools = self.tools or []
        return Turn(
            history(earlier, sent),
            SystemPrompt(reasoning=self.effort),
            instructions(self.instructions, [*earlier, *sent]),
            [Tool(tool.name, tool.description, tool.parameters) for tool in tools],
            frozenset(tool.name for tool in tools if tool.strict),
            self._choice([tool.name for tool in tools]),
            self.parallel_tool_calls is not False,
            self._format(),
            options(package, self, self.max_output_tokens),
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            timeout=timeout,
        )

    @property
    def effort(self) -> str:
        """As the model knows it."""
        return effort(self.reasoning.effort if self.reasoning else None)

    @property
    def logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def _choice(self, names: list[str]) -> Literal["auto", "none", "required"] | Named:
        choice = self.tool_choice
        if isinstance(choice, ResponseToolName):
            if choice.name not in names:
                raise ApiError("it names none of the tools", param="tool_choice")
            return Named(choice.name)
        if choice == "required" and not names:
            raise ApiError("a tool is required, and there are none in tools", param="tool_choice")
        return choice or "auto"

    def _format(self) -> JsonFormat | None:
        asked = self.text.format if self.text else None
        if isinstance(asked, ResponseJsonSchema):
            schema, strict = asked.schema_ or {"type": "object"}, asked.strict is True
            return JsonFormat(schema, asked.name, asked.description, strict)
        return JsonFormat() if isinstance(asked, JsonObjectFormat) else None
