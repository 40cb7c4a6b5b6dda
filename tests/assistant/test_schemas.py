"""JSON schemas of strangers: what is refused, in which words, and what one may cost."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.assistant import grammar
from gptoss_onnx.assistant.grammar import Grammars
from gptoss_onnx.runtimes.errors import UserError
from tests.assistant.test_grammar import WEATHER, Schema, demo

__all__ = ["demo"]


def nested(levels: int, *, key: str = "a") -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {key: schema}}
    return schema


def chain(length: int, link: Callable[[Schema], Schema]) -> Schema:
    links = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length)}
    return {"$defs": links | {f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ([], "no JSON schema"),
    "text": ("x", "no JSON schema"),
    "no JSON": ({"const": {1, 2}}, "no JSON"),
    "half a character": ({"const": "\ud800"}, "enforced"),
    "no type": ({"type": "objekt"}, "objekt"),
    "types": ({"type": 5}, "type"),
    "remote": ({"$ref": "http://127.0.0.1:9/x.json"}, "does not fetch"),
    "remote dialect": ({"$schema": "http://127.0.0.1:9/x"}, "does not fetch"),
    "a file": ({"$ref": "file:///etc/passwd"}, "does not fetch"),
    "nowhere": ({"$ref": "#/$defs/x"}, "does not exist"),
    "unsatisfiable": ({"type": "integer", "minimum": 5, "maximum": 3}, "greater"),
    "refers to itself": ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "enforced"),
    "not": ({"not": {"type": "string"}}, "not"),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "half a pattern": ({"type": "string", "pattern": "("}, "unclosed"),
    "format": ({"type": "string", "format": "nonsense"}, "nonsense"),
    "huge": ({"enum": [f"x{i}" for i in range(20_000)]}, "characters"),
    "deep": (nested(90), "recursion"),
    "deepest": (nested(100_000), "nested too deeply"),
    "a chain": (chain(2400, lambda ref: ref), "levels"),
    "a chain of properties": (chain(900, lambda ref: {"properties": {"a": ref}}), "levels"),
    "a product": (
        {
            "allOf": [
                {"anyOf": [nested(1, key=f"{i}.{j}") for i in range(6)]} for j in range(6)
            ]
        },
        "too large",
    ),
    "too many numbers": ({"type": "integer", "multipleOf": 10**9 + 7}, "fuel"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_schema_that_cannot_be_held_to(demo: Grammars, case: str) -> None:
    schema, why = REFUSED[case]
    with pytest.raises(UserError) as raised:
        demo.json_schema(schema, "response_format: its schema")
    message = str(raised.value)
    assert message.startswith("response_format: its schema ") and why in message
    assert "\n" not in message and len(message) < 320


CRASHERS = """
import sys, threading
from gptoss_onnx.assistant.grammar import Grammars
from gptoss_onnx.assistant.schema_depth import MOST_LEVELS
from gptoss_onnx.runtimes.package import Package
from tests.assistant.test_schemas import chain
grammars = Grammars(Package.open(sys.argv[1]))
links = [lambda r: r, lambda r: {"items": r}, lambda r: {"allOf": [r, {"title": "x"}]},
         lambda r: {"anyOf": [r, {"type": "null"}]}, lambda r: {"properties": {"a": r}}]
compiled = []
def compile_all():
    for link, levels in zip(links, (1, 2, 3, 3, 3)):
        compiled.append(grammars.json_schema(chain(MOST_LEVELS // levels - 5, link)))
threading.stack_size(1 << 20)
thread = threading.Thread(target=compile_all)
thread.start()
thread.join()
sys.exit(len(compiled) != len(links))
"""


def test_what_is_let_through_does_not_overflow_the_stack(demo: Grammars) -> None:
    """It would end the process."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CRASHERS, str(demo.package.folder)]
    assert subprocess.run(command, cwd=root, check=False).returncode == 0


LENIENT: dict[str, Schema] = {
    "unique": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "format": {"type": "string", "format": "nonsense"},
    "one of": {"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]},
}


@pytest.mark.parametrize("case", LENIENT)
def test_not_strict_passes_over_what_it_cannot_enforce(demo: Grammars, case: str) -> None:
    demo.json_schema(LENIENT[case], strict=False)
    with pytest.raises(UserError, match="enforced"):
        demo.json_schema(LENIENT[case])


def test_from_several_threads(demo: Grammars) -> None:
    fresh, made = Grammars(demo.package), []
    threads = [
        threading.Thread(target=lambda: made.append((fresh.vocabulary, fresh.json_object())))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(vocabulary) for vocabulary, _ in made}) == 1
    matchers = [make() for _, make in made]
    assert matchers[0].accept(demo.package.tokenizer.encode("{")[0])
    assert all(
        not matcher.accept(demo.package.tokenizer.encode("}")[0]) for matcher in matchers[1:]
    )


def test_schemas_are_compiled_once(demo: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Grammars(demo.package)
    fresh.json_schema(WEATHER)
    monkeypatch.setattr(grammar, "on_a_deep_stack", None)  # not asked again
    fresh.json_schema(dict(WEATHER))
    monkeypatch.undo()
    for number in range(40):
        fresh.json_schema({"const": number})
    assert len(fresh._compiled) == grammar._KEPT


GROWS = {"type": "string", "pattern": "^(a{1000}){1000}$"}


def test_an_automaton_that_is_full_is_given_up(demo: Grammars) -> None:
    """And not kept: all copies would share it."""
    fresh = Grammars(demo.package)
    a, quote = demo.package.tokenizer.encode("a")[0], demo.package.tokenizer.encode('"')[0]
    make = fresh.json_schema(GROWS)
    matcher = make()
    assert matcher.mask()[quote] and len(fresh._compiled) == 1
    matcher.accept(quote)
    assert not matcher.mask().any() and not matcher.complete
    assert not fresh._compiled
    assert not matcher.accept(a) and not matcher.mask().any()  # and it stays so
    fresh.json_schema(GROWS)
    make().mask()  # an older copy gives up: the new one stays
    other = make()
    other.accept(quote)
    assert not other.mask().any()
    assert len(fresh._compiled) == 1


def test_an_automaton_is_replaced_after_some_uses(
    demo: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "_USES", 3)
    compiled = []
    compile_one = Grammars._compile

    def count(*args: Any) -> Any:
        compiled.append(args)
        return compile_one(*args)

    monkeypatch.setattr(Grammars, "_compile", count)
    fresh = Grammars(demo.package)
    for uses, wanted in ((4, 1), (4, 2), (1, 3)):
        for _ in range(uses):
            fresh.json_schema(WEATHER)
        assert len(compiled) == wanted
