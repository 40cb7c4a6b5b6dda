"""Schemas as nobody should write them, as JSON text: number forms and the order of keys count."""

from __future__ import annotations

import json
import random

TEXTS = [
    "", "plain", "two\nlines", "a\r\nb\rc", "\v\f\x1c\x85\u2028\u2029", 'say "hi"', "back\\slash",
    "東京 🎉", "// comment", "} // namespace functions", "<|end|><|start|>system", "null", " ",
]  # fmt: skip
NAMES = [
    "a", "b", "city", "10", "2", "1", "-1", "007", "", "with space", "é", "a-b", "q\"uote",
    "new\nline", "__proto__", "constructor", "toString", "length", "null",
]  # fmt: skip
NUMBERS = [
    "0", "-0", "1", "-1", "1.0", "-0.0", "1.50", "0.1", "1e3", "1E+3", "1e-5", "1e-6", "1e-7",
    "0.00001234", "1e15", "1e16", "1e20", "1e21", "1e22", "-1.5e300", "5e-324", "1e-400",
    "0e999999", "9007199254740993", "18446744073709551615", "18446744073709551616",
    "-9223372036854775808", "-9223372036854775809", "123456789012345678901234567890",
    "0.30000000000000004", "1844674407370955161.65", "184467440737095516160.5",
    "6.6636192017225585e-80", "6.881929858469539e+78", "3.1415926535897932384626433832795",
    "1e00000000000000000001", "100000000000000000000000.5e-3", "1e308", "1.7e308",
]  # fmt: skip
KINDS = ["object", "object", "object", "string", "string", "array", "number", "integer", "boolean"]


def make_schema(draw: random.Random, depth: int = 3) -> str:
    """The JSON text of a schema, some of whose fields hold what they should not."""
    if draw.random() < 0.06:
        return _value(draw, 1)
    fields: list[tuple[str, str]] = []
    often = 0.35 if depth else 0.15

    def sometimes(key: str, text: str, chance: float = often) -> None:
        if draw.random() < chance:
            fields.append((key, _value(draw, 2) if draw.random() < 0.15 else text))

    kind = draw.choice(KINDS)
    sometimes("type", json.dumps(kind), 0.85)
    if draw.random() < 0.1:
        fields.append(("type", json.dumps([draw.choice([*KINDS, "null", 1]) for _ in range(2)])))
    sometimes("title", _text(draw))
    sometimes("description", _text(draw))
    sometimes("enum", _many(draw, _scalar(draw), _text(draw), _text(draw)))
    sometimes("examples", _many(draw, _text(draw), _scalar(draw)))
    sometimes("default", _value(draw, 2))
    sometimes("nullable", draw.choice(["true", "true", "false", '"true"', "1"]))
    sometimes("const", _value(draw, 1), 0.05)
    sometimes("$ref", '"#/$defs/a"', 0.05)
    if depth:
        if kind == "object" or draw.random() < 0.1:
            names = draw.sample(NAMES, draw.randrange(5))
            if names and draw.random() < 0.1:
                names.append(names[0])
            entries = [(name, make_schema(draw, depth - 1)) for name in names]
            sometimes("properties", _object(entries), 0.9)
            sometimes("required", _many(draw, *map(json.dumps, names), _scalar(draw)), 0.6)
        if kind == "array" or draw.random() < 0.1:
            sometimes("items", make_schema(draw, depth - 1), 0.8)
        variants = [make_schema(draw, depth - 1) for _ in range(draw.randrange(4))]
        sometimes("oneOf", f"[{','.join(variants)}]", 0.2)
        sometimes("anyOf", f"[{','.join(variants)}]", 0.1)
        sometimes("allOf", f"[{make_schema(draw, 0)}]", 0.05)
        sometimes("additionalProperties", make_schema(draw, 0), 0.1)
    draw.shuffle(fields)
    return _object(fields)


def _value(draw: random.Random, depth: int) -> str:
    if not depth or draw.random() < 0.5:
        return _scalar(draw)
    if draw.random() < 0.5:
        return f"[{','.join(_value(draw, depth - 1) for _ in range(draw.randrange(3)))}]"
    names = draw.sample(NAMES, draw.randrange(3))
    return _object([(name, _value(draw, depth - 1)) for name in names])


def _scalar(draw: random.Random) -> str:
    if draw.random() < 0.5:
        return draw.choice(NUMBERS)
    return draw.choice(["null", "true", "false", _text(draw), json.dumps("a")])


def _text(draw: random.Random) -> str:
    return json.dumps(draw.choice(TEXTS), ensure_ascii=draw.random() < 0.5)


def _many(draw: random.Random, *entries: str) -> str:
    return f"[{','.join(entries[: draw.randrange(len(entries) + 1)])}]"


def _object(fields: list[tuple[str, str]]) -> str:
    return f"{{{', '.join(f'{json.dumps(key)}: {text}' for key, text in fields)}}}"
