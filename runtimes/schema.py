"""Values held to a JSON Schema, by the few keywords that manifest.schema.json is written in.

The same few lines in every language, so that each finds the same first fault and names its field in
the same way; libraries for JSON Schema cost 40 to 60 ms at every start and leave the naming to us.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]
# Every keyword that is understood; the test of the schema finds others.
CHECKED = {
    *("$ref", "allOf", "type", "const", "enum", "minimum", "maximum", "minLength", "maxLength"),
    *("pattern", "minItems", "maxItems", "items", "minProperties", "maxProperties", "required"),
    *("propertyNames", "properties", "additionalProperties"),
}
_PLAIN = re.compile(r"[A-Za-z0-9_.+-]{1,128}")


def fault(value: Any, schema: Schema, root: Schema, where: str = "") -> str | None:
    """The first thing in `value`, as JSON has it, that `schema` forbids; None where there is none.

    One line that begins with the field: `kv.layers[0].window is -1: it must be at least 1`.
    `root` is where `$ref` points into, `where` the field that `value` stands in.
    """
    if not schema:  # anything: however deep it nests, nobody looks inside
        return None
    if "$ref" in schema and (found := fault(value, _referred(root, schema["$ref"]), root, where)):
        return found
    for part in schema.get("allOf", ()):
        if found := fault(value, part, root, where):
            return found
    if wanted := _wanted(value, schema):
        return f"{where} is {shown(value)}: it must be {wanted}"
    if isinstance(value, list):
        return _fault_of_items(value, schema, root, where)
    if isinstance(value, dict):
        return _fault_of_members(value, schema, root, where)
    return None


def shown(value: Any, most: int = 60) -> str:
    """A value as JSON on one line, cut short."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested deeply"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _referred(root: Schema, pointer: str) -> Schema:
    found: Any = root
    for part in pointer.removeprefix("#/").split("/"):
        found = found[part]
    return found  # type: ignore[no-any-return]


def _whole(value: Any) -> bool:
    return _number(value) and (isinstance(value, int) or value.is_integer())


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "null": ("null", lambda value: value is None),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "integer": ("a whole number", _whole),
    "number": ("a number", _number),
    "string": ("a string", lambda value: isinstance(value, str)),
    "array": ("a list", lambda value: isinstance(value, list)),
    "object": ("an object", lambda value: isinstance(value, dict)),
}


def _wanted(value: Any, schema: Schema) -> str | None:
    """What the value itself must be and is not, in words."""
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_TYPES[kind][1](value) for kind in kinds):
            return " or ".join(_TYPES[kind][0] for kind in kinds)
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None and value not in allowed:
        return " or ".join(map(shown, allowed))
    if _number(value):
        if value < schema.get("minimum", value):
            return f"at least {schema['minimum']}"
        if value > schema.get("maximum", value):
            return f"at most {schema['maximum']}"
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            return f"of {schema.get('minLength', 0)} to {schema['maxLength']} letters"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return f"of the form {schema['title']}"
    return None


def _fault_of_items(value: list[Any], schema: Schema, root: Schema, where: str) -> str | None:
    if found := _counted(len(value), schema, "Items", where):
        return found
    items = (fault(v, schema.get("items", {}), root, f"{where}[{i}]") for i, v in enumerate(value))
    return next(filter(None, items), None)


def _fault_of_members(
    value: dict[str, Any], schema: Schema, root: Schema, where: str
) -> str | None:
    if found := _counted(len(value), schema, "Properties", where):
        return found
    for name in schema.get("required", ()):
        if name not in value:
            return f"{_joined(where, name)} is missing"
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name, member in value.items():
        if why := fault(name, schema.get("propertyNames", {}), root, "a name"):
            return f"{where}: {why}"
        field = _joined(where, name)
        if name not in known and others is False:
            return f"{field} is not known: {', '.join(known)} may be there and nothing else"
        if found := fault(member, known.get(name, others), root, field):
            return found
    return None


def _counted(count: int, schema: Schema, what: str, where: str) -> str | None:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}", count)
    if least <= count <= most:
        return None
    return f"{where} holds {count}: it must hold {least} to {schema.get(f'max{what}', 'any')}"


def _joined(where: str, name: str) -> str:
    part = name if _PLAIN.fullmatch(name) else shown(name)
    return f"{where}.{part}" if where else part
