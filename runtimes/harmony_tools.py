"""The tools' part of harmony's developer message: JSON schemas as TypeScript-like declarations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A function the model may call; `parameters` is a JSON schema, None for no arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any] | None = None


def render_tools(tools: Sequence[Tool]) -> str:
    """The functions as the TypeScript-like declarations the model was trained on."""
    lines = ["# Tools", "", "## functions", "", "namespace functions {", ""]
    for tool in tools:
        lines += [f"// {line}" for line in tool.description.splitlines()]
        arguments = "" if tool.parameters is None else f"_: {_typescript(tool.parameters, '')}"
        lines += [f"type {tool.name} = ({arguments}) => any;", ""]
    return "\n".join([*lines, "} // namespace functions"])


def _typescript(schema: Any, indent: str) -> str:
    """A JSON schema as a type; `any` for what the reference renderer does not know either."""
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(schema.get("oneOf"), list):
        variants = [
            _variant(variant, indent, _text(variant, "description"), bare_enum=False)
            for variant in schema["oneOf"]
        ]
        return "".join(f"\n{indent} | {variant}" for variant in variants)
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        return " | ".join("number" if name == "integer" else str(name) for name in kind)
    if kind == "object":
        return _object(schema, indent)
    if kind == "string":
        values = [f'"{value}"' for value in schema.get("enum") or () if isinstance(value, str)]
        return " | ".join(values) or "string"
    if kind == "array":
        return f"{_typescript(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    return {"number": "number", "integer": "number", "boolean": "boolean"}.get(str(kind), "any")


def _object(schema: Mapping[str, Any], indent: str) -> str:
    description = _text(schema, "description")
    lines = [f"{indent}// {description}"] if description is not None else []
    lines.append("{")
    required = schema.get("required") or ()
    for key, value in (schema.get("properties") or {}).items():
        name = key if key in required else f"{key}?"
        lines += [indent + line for line in _property(name, value, indent)]
    return "\n".join([*lines, f"{indent}}}"])


def _property(name: str, schema: Any, indent: str) -> list[str]:
    """The lines of one property. Those of nested types are indented already, the first excepted."""
    if not isinstance(schema, Mapping):
        return [f"{name}: any,"]
    title, description = _text(schema, "title"), _text(schema, "description")
    default = _default(schema)
    head = [f"// {title}", "//"] if title is not None else []
    about = [f"// {description}"] if description is not None else []
    shown = schema.get("examples") or []
    examples = ["// Examples:"] if shown else []
    examples += [f'// - "{text}"' for text in shown if isinstance(text, str)]
    variants = schema.get("oneOf")
    if not isinstance(variants, list):
        comment = f" // {default}" if default else ""
        kind = _nullable(schema, indent + "    ")
        return [*head, *about, *examples, f"{name}: {kind},{comment}"]
    # The reference leaves a description that the first variant repeats out of both.
    repeated = bool(variants) and _text(variants[0], "description") == description
    lines = [*head, *examples, *([] if repeated else about)]
    lines += [f"// {default}"] if default else []
    lines.append(f"{name}:")
    for place, variant in enumerate(variants):
        said = _text(variant, "description")
        hidden = said == description or (place == 0 and bool(about))
        lines.append(f" | {_variant(variant, indent, None if hidden else said)}")
    return [*lines, ","]


def _variant(schema: Any, indent: str, description: str | None, *, bare_enum: bool = True) -> str:
    """One alternative of a `oneOf`, with its description and default behind it."""
    comments = [description, _default(schema, bare_enum=bare_enum)]
    text = " ".join(comment for comment in comments if comment is not None)
    return _nullable(schema, indent + "   ") + (f" // {text}" if text else "")


def _nullable(schema: Any, indent: str) -> str:
    kind = _typescript(schema, indent)
    nullable = isinstance(schema, Mapping) and schema.get("nullable") is True
    return f"{kind} | null" if nullable and "null" not in kind else kind


def _default(schema: Any, *, bare_enum: bool = True) -> str | None:
    if not isinstance(schema, Mapping) or "default" not in schema:
        return None
    value = schema["default"]
    if isinstance(value, str) and not schema.get("enum"):
        return f'default: "{value}"'
    if isinstance(value, str) and bare_enum:
        return f"default: {value}"
    return f"default: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"


def _text(schema: Any, key: str) -> str | None:
    value = schema.get(key) if isinstance(schema, Mapping) else None
    return value if isinstance(value, str) else None
