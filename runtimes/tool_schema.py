"""A tool's JSON schema as the TypeScript-like type of harmony's prompts.

As openai-harmony 0.0.8 renders it, letter for letter; what it does not know (`$ref`, `anyOf`,
`const`) is `any` there and here. Schemas are `json_values.plain` ones.
"""

from __future__ import annotations

from typing import Any

from gptoss_onnx.runtimes.json_values import dump


def typescript(schema: Any, indent: str = "") -> str:
    """The type of what `schema` admits."""
    if not isinstance(schema, dict):
        return "any"
    variants = _list(schema, "oneOf")
    if variants is not None:
        shown = (_variant(v, indent, _text(v, "description"), bare_enum=False) for v in variants)
        return "".join(f"\n{indent} | {variant}" for variant in shown)
    names = [name for name in _list(schema, "type") or () if isinstance(name, str)]
    if names:
        return " | ".join("number" if name == "integer" else name for name in names)
    kind = _text(schema, "type")
    if kind == "object":
        return _object(schema, indent)
    if kind == "string":
        values = (value for value in _list(schema, "enum") or () if isinstance(value, str))
        return " | ".join(f'"{value}"' for value in values) or "string"
    if kind == "array":
        return f"{typescript(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    return {"number": "number", "integer": "number", "boolean": "boolean"}.get(str(kind), "any")


def _object(schema: dict[str, Any], indent: str) -> str:
    description = _text(schema, "description")
    lines = [f"{indent}// {description}"] if description is not None else []
    lines.append("{")
    required = _list(schema, "required") or ()
    properties = schema.get("properties")
    for key, value in properties.items() if isinstance(properties, dict) else ():
        name = key if key in required else f"{key}?"
        lines += [indent + line for line in _property(name, value, indent)]
    return "\n".join([*lines, f"{indent}}}"])


def _property(name: str, schema: Any, indent: str) -> list[str]:
    """The lines of one property. Those of nested types are indented already, the first excepted."""
    title, description = _text(schema, "title"), _text(schema, "description")
    default = _default(schema)
    head = [f"// {title}", "//"] if title is not None else []
    about = [f"// {description}"] if description is not None else []
    shown = _list(schema, "examples") or ()
    examples = ["// Examples:"] if shown else []
    examples += [f'// - "{text}"' for text in shown if isinstance(text, str)]
    variants = _list(schema, "oneOf")
    if variants is None:
        if isinstance(schema, dict) and "oneOf" in schema:
            about, default = [], None  # whatever it is, the reference tells no more
        comment = f" // {default}" if default is not None else ""
        kind = _nullable(schema, indent + "    ")
        return [*head, *about, *examples, f"{name}: {kind},{comment}"]
    # The reference leaves a description that the first variant repeats out of both.
    repeated = bool(variants) and _text(variants[0], "description") == description
    lines = [*head, *examples, *([] if repeated else about)]
    lines += [f"// {default}"] if default is not None else []
    lines.append(f"{name}:")
    for place, variant in enumerate(variants):
        said = _text(variant, "description")
        hidden = said == description or (place == 0 and bool(about))
        lines.append(f" | {_variant(variant, indent, None if hidden else said)}")
    return [*lines, ","]


def _variant(schema: Any, indent: str, description: str | None, *, bare_enum: bool = True) -> str:
    """One alternative of a `oneOf`, with its description and default behind it."""
    comments = [description, _default(schema, bare_enum=bare_enum)]
    shown = [comment for comment in comments if comment is not None]
    return _nullable(schema, indent + "   ") + (f" // {' '.join(shown)}" if shown else "")


def _nullable(schema: Any, indent: str) -> str:
    kind = typescript(schema, indent)
    nullable = isinstance(schema, dict) and schema.get("nullable") is True
    return f"{kind} | null" if nullable and "null" not in kind else kind


def _default(schema: Any, *, bare_enum: bool = True) -> str | None:
    if not isinstance(schema, dict) or "default" not in schema:
        return None
    value = schema["default"]
    if isinstance(value, str) and not _list(schema, "enum"):
        return f'default: "{value}"'
    if isinstance(value, str) and bare_enum:
        return f"default: {value}"
    return f"default: {dump(value)}"


def _text(schema: Any, key: str) -> str | None:
    value = schema.get(key) if isinstance(schema, dict) else None
    return value if isinstance(value, str) else None


def _list(schema: Any, key: str) -> list[Any] | None:
    value = schema.get(key) if isinstance(schema, dict) else None
    return value if isinstance(value, list) else None
