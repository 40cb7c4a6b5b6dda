"""JSON values as openai-harmony has them: read and written as Rust's serde_json does.

A prompt is only what the model was trained on when a default of 0.0000001 reads `1e-7`, as there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gptoss_onnx.runtimes.errors import UserError

_DEEPEST = 128  # levels, as in serde_json
_NUMBER = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([-+]?)0*(\d+))?", re.ASCII)


@dataclass(frozen=True)
class Number:
    """A number as it is written: `1.0` is not `1`."""

    text: str


def read_json(text: str, where: str) -> Any:
    """JSON text as `plain` values; UserError, which names `where`, when it is none."""

    def number(text: str) -> Number:
        return _number(text, where)

    def refuse(word: str) -> None:
        raise UserError(f"{where} holds {word}, which is no JSON number")

    try:
        value = json.loads(text, parse_int=number, parse_float=number, parse_constant=refuse)
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:
        raise UserError(f"{where} is no JSON: {error}") from None
    return plain(value, where)


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` of dicts with text keys, lists, text, booleans, None and `Number`s.

    Keys that are numbers, booleans or None become text as json.dumps has it. UserError, which names
    the place, for what JSON cannot hold.
    """
    if depth > _DEEPEST:
        raise _too_deep(where)
    if value is None or isinstance(value, bool | Number):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of a str Enum the text, not its name
    if isinstance(value, int):
        if value.bit_length() > 1024:  # more digits than Python writes, or than a float holds
            raise _too_large(where)
        return _number(int.__repr__(value), where)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where} holds {value}, which is no JSON number")
        return _number(float.__repr__(value), where)
    if isinstance(value, Mapping):
        entries = [(_key(key, where), entry) for key, entry in value.items()]
        return {key: plain(entry, _inside(where, key), depth + 1) for key, entry in entries}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{where}[{i}]", depth + 1) for i, entry in enumerate(value)]
    raise UserError(f"{where} is a {type(value).__name__}, which JSON does not have")


def dump(value: Any) -> str:
    """A `plain` value as JSON text without spaces."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, dict):
        entries = (f"{dump(key)}:{dump(entry)}" for key, entry in value.items())
        return f"{{{','.join(entries)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(dump, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    raise UserError(f"{where} has a {type(key).__name__} as key: give text")


def _inside(where: str, key: str) -> str:
    return f"{where}.{key}" if key.isidentifier() else f"{where}[{json.dumps(key)}]"


def _too_deep(where: str) -> UserError:
    return UserError(f"{where[:80]} is nested deeper than {_DEEPEST} levels")


def _too_large(where: str) -> UserError:
    return UserError(f"{where} holds a number beyond 1.8e308: make it smaller")


def _number(text: str, where: str) -> Number:
    """JSON number `text` as serde_json writes what it reads.

    It reads whole numbers of 64 bits exactly. Others are a significand of 64 bits, further digits
    forgotten, times or by a power of ten: the last digit may differ from the nearest double's.
    """
    match = _NUMBER.fullmatch(text)
    assert match is not None
    sign, whole, fraction, direction, power = match.groups()
    integer = fraction is None and power is None and text != "-0"
    if integer and len(whole) <= 20 and -(2**63) <= int(text) < 2**64:
        return Number(text)
    significand, exponent = 0, 0
    for place, digit in enumerate(whole):
        if significand * 10 + int(digit) >= 2**64:
            exponent = len(whole) - place
            break
        significand = significand * 10 + int(digit)
    for digit in fraction or "":
        if significand * 10 + int(digit) >= 2**64:
            break
        significand, exponent = significand * 10 + int(digit), exponent - 1
    if power is not None:
        size = int(power) if len(power) < 10 else 10**9
        exponent += -size if direction == "-" else size
    value = float(significand)
    while value and exponent < -308:
        value, exponent = value / 1e308, exponent + 308
    if value and exponent >= 0:
        value = value * float(f"1e{exponent}") if exponent <= 308 else math.inf
    elif value:
        value /= float(f"1e{-exponent}")
    if math.isinf(value):
        raise _too_large(where)
    return Number(sign + _written(value))


def _written(value: float) -> str:
    """The shortest digits that mean `value`, in the notation that serde_json takes for them."""
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    point = len(text) + int(exponent)  # digits before the decimal point
    if len(text) <= point <= 16:
        return f"{text.ljust(point, '0')}.0"
    if 0 < point <= 16:
        return f"{text[:point]}.{text[point:]}"
    if -5 < point <= 0:
        return f"0.{'0' * -point}{text}"
    return f"{text[0]}{'.' if text[1:] else ''}{text[1:]}e{point - 1}"
