"""What requests of several APIs have in common: fields, and what they mean to a `Turn`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from gptoss_onnx.assistant.json_body import WHOLE, Body
from gptoss_onnx.runtimes.generation import Options
from gptoss_onnx.runtimes.package import Package

_SEEDS = 1 << 64
_TEXTS = ("text", "input_text", "output_text", "refusal")
# What other parts are, for people.
_REFUSED = {
    "image_url": "images", "input_image": "images", "image": "images",
    "input_audio": "audio", "audio": "audio",
    "file": "files", "input_file": "files", "document": "files",
    "video_url": "videos",
}  # fmt: skip

TOOL_NAME = r"^[a-zA-Z0-9_.:/-]{1,128}$"
ToolName = Annotated[str, Field(pattern=TOOL_NAME)]
# The model was trained on three. What asks for less than `low` gets that, as it cannot but reason,
# and what asks for more than `high` gets the most there is.
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}


def joined(value: Any) -> Any:
    """Content that is a list of text parts, as one text; ValueError for what is no text."""
    if not isinstance(value, list):
        return value
    return "\n".join(map(_text_of, value))


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _REFUSED:
        raise ValueError(f"{_REFUSED[kind]} are not supported: this model reads text alone")
    text = part.get("refusal" if kind == "refusal" else "text") if kind in _TEXTS else None
    if not isinstance(text, str):
        raise ValueError('a part of content must be {"type": "text", "text": "..."}')
    return text


def _parts_schema(*kinds: str) -> dict[str, Any]:
    part = {
        "type": "object",
        "properties": {"type": {"enum": list(kinds)}, "text": {"type": "string"}},
        "required": ["type", "text"],
    }
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}


# Text, or a list of text parts, which are joined by line feeds.
Text = Annotated[str, BeforeValidator(joined), WithJsonSchema(_parts_schema("text"))]


def _neutral(value: Any) -> Any:
    if value not in (None, 0) or isinstance(value, bool):
        raise ValueError("only 0 is supported: take repetition_penalty instead")
    return value


def _empty(value: Any) -> Any:
    if value not in (None, {}, []):
        raise ValueError("this is not supported: leave it out")
    return value


_NONE_OR_ZERO = WithJsonSchema({"enum": [0, None]})
_NONE_OR_EMPTY = WithJsonSchema(
    {
        "anyOf": [
            {"type": "object", "maxProperties": 0},
            {"type": "array", "maxItems": 0},
            {"type": "null"},
        ]
    }
)
Neutral = Annotated[float | None, BeforeValidator(_neutral), _NONE_OR_ZERO]
Unsupported = Annotated[Any, BeforeValidator(_empty), _NONE_OR_EMPTY]


class SamplingFields(Body):
    """How tokens are chosen. What is left out is the package's own.

    `top_k`, `min_p` and `repetition_penalty` are no OpenAI API's, and other servers' too.
    """

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31), WHOLE] | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: Annotated[int, Field(ge=-_SEEDS // 2, lt=_SEEDS), WHOLE] | None = None


class PenaltyFields(Body):
    frequency_penalty: Neutral = None
    presence_penalty: Neutral = None
    logit_bias: Unsupported = None


def options(package: Package, fields: SamplingFields, max_tokens: int | None) -> Options:
    """As `gptoss generate` has them: a seed or a penalty alone does not ask for sampling."""
    names = SamplingFields.model_fields
    given = {n: v for n in names if (v := getattr(fields, n)) is not None}
    if "seed" in given:
        given["seed"] %= _SEEDS
    if "top_p" in given:  # 0 asks for the likeliest token
        given["top_p"] = max(given["top_p"], 1e-9)
    sampling = package.sampling_with(**given)
    if given.keys() & {"temperature", "top_p", "top_k", "min_p"}:
        sampling = replace(sampling, do_sample=sampling.temperature > 0)
    return Options(max_tokens, sampling)


def effort(*asked: str | None, default: str = "medium") -> str:
    """The first effort that was asked for, as the model knows it."""
    found = next((name for name in asked if name is not None), default)
    return _EFFORTS.get(found, found)


def stops(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Texts that end an answer; an empty one ends none."""
    return tuple(text for text in ([value] if isinstance(value, str) else value or ()) if text)
