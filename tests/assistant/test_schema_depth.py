"""Bounds for schemas: what is counted, and what runs with room."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gptoss_onnx.assistant import schema_depth
from gptoss_onnx.assistant.schema_depth import LONGEST, check_size, on_a_deep_stack
from gptoss_onnx.runtimes.errors import UserError


def nested(levels: int) -> dict[str, Any]:
    """`levels` objects."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


COUNTED: list[tuple[dict[str, Any], int]] = [
    ({"type": "string"}, 1),
    ({"enum": [1, "x"]}, 2),
    (nested(40), 40),
    ({"a": nested(9), "$ref": "#/a"}, 10 + 9),
    ({"a": nested(9), "b": [{"$ref": "#/a"}, {"$ref": "#/a"}]}, 10 + 9),  # followed once
    ({"a": nested(9), "$ref": "#/a/not"}, 10 + 8),
    ({"a/~b c": nested(5), "x": nested(9), "$ref": "#/a~1~0b%20c"}, 10 + 5),
    ({"a": [{}, nested(5), nested(9)], "$ref": "#/a/1"}, 11 + 5),
    # What no path tells may be all of it.
    ({"a": nested(9), "$ref": "#"}, 20),
    ({"a": nested(9), "$ref": "#anchor"}, 20),
    ({"a": nested(9), "$ref": "http://example.com/x"}, 20),
    ({"a": nested(9), "$ref": "#/b"}, 20),
    ({"a": [nested(9)], "$ref": "#/a/1"}, 22),
    ({"a": [nested(9)], "$ref": "#/a/\u00b2"}, 22),
    ({"a": [nested(9)], "$ref": "#/a/99999999999999999999999"}, 22),
    ({"a": nested(9), "$ref": 5}, 10),
]


@pytest.mark.parametrize(("schema", "levels"), COUNTED)
def test_levels(schema: dict[str, Any], levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_depth, "MOST_LEVELS", levels)
    check_size(schema, 1, "it")
    monkeypatch.setattr(schema_depth, "MOST_LEVELS", levels - 1)
    with pytest.raises(UserError, match=f"^it is {levels} levels deep"):
        check_size(schema, 1, "it")


def test_length() -> None:
    check_size({}, LONGEST, "it")
    with pytest.raises(UserError, match=f"^it has {LONGEST + 1} characters"):
        check_size({}, LONGEST + 1, "it")


def test_a_deep_stack() -> None:
    before = threading.stack_size()
    assert on_a_deep_stack(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        on_a_deep_stack(lambda: 1 // 0)
    assert threading.stack_size() == before
