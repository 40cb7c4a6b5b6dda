"""Replies held to JSON schemas and tool choices, written by a model that knows nothing."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest

from gptoss_onnx.assistant.grammar import Grammars, constraint_for
from gptoss_onnx.assistant.turn import JsonFormat, Named
from gptoss_onnx.runtimes.constraint import Constraint, Make
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Tool
from gptoss_onnx.runtimes.harmony_tools import BROWSER_TOOL, PYTHON_TOOL
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import Reply, read_reply
from tests.conftest import DEMO, seal
from tests.o200k import VOCAB_SIZE, o200k
from tests.runtimes.conftest import TinyModel, write_package

Schema = dict[str, Any]
PADDED = 4096 + 70  # more ids than the demo's tokenizer has, and no multiple of 32
WEATHER: Schema = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2, 3]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", "Tells the weather.", WEATHER), Tool("time", None, None))


def package_of(folder: Path, tokenizer: Path, size: int) -> Package:
    """A package with that tokenizer, whose graph is another's: it is not loaded."""
    write_package(folder, TinyModel.random(layers=1))
    shutil.copy(tokenizer / "tokenizer.json", folder / "tokenizer.json")
    generation_config = {"eos_token_id": 3} if size == PADDED else {}
    (folder / "generation_config.json").write_text(json.dumps(generation_config))
    seal(folder, json.loads((folder / "manifest.json").read_text()) | {"vocab_size": size})
    return Package.open(folder)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    return Grammars(package_of(tmp_path_factory.mktemp("packages") / "demo", DEMO, PADDED))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    """With the real vocabulary."""
    folder = tmp_path_factory.mktemp("packages") / "real"
    return Grammars(package_of(folder, o200k(), VOCAB_SIZE))


class Babbler:
    """A model that writes any token that it may, rather one that ends something."""

    def __init__(self, grammars: Grammars) -> None:
        vocabulary = grammars.vocabulary
        self._stops = grammars.package.stop_ids
        self._bonus = np.zeros(vocabulary.size)
        # Of more tokens, as likely an end.
        more = 2 * np.log(vocabulary.size / 4096)
        special = ["<|end|>", "<|return|>", "<|call|>", "<|message|>"]
        self._bonus[[vocabulary.tokenizer.special(name) for name in special]] = 7 + more
        for token, piece in enumerate(vocabulary.pieces):
            if piece[:1] in (b'"', b"}", b"]"):
                self._bonus[token] = 5 + more
            elif (len(piece) > 1 and not piece.isascii()) or piece in (b"\xf0", b"\xe4"):
                self._bonus[token] = 1

    def write(self, held: Constraint, seed: int) -> list[int]:
        """Ids of a reply, held to the end, a stop included."""
        chance = np.random.default_rng(seed)
        ids: list[int] = []
        while not ids or ids[-1] not in self._stops:
            mask = held.allowed()
            assert mask is not None and mask.shape == self._bonus.shape and len(ids) < 5000
            scores = self._bonus + chance.gumbel(scale=2, size=self._bonus.shape)
            ids.append(int(np.where(mask, scores, -np.inf).argmax()))
            held.accept(ids[-1])
        assert held.allowed() is None
        return ids


def read(grammars: Grammars, ids: list[int]) -> Reply:
    package = grammars.package
    return read_reply(package.tokenizer, ids, "stop", [t.name for t in TOOLS], package.stop_ids)


class Schemas:
    """Random schemas whose texts end."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def object(self, depth: int = 0) -> Schema:
        names = self._random.sample(["a", "城市", "🎉", "a b", 'q"', "lang", "x" * 20], 3)
        wanted = [name for name in names if depth or self._random.random() < 0.7]
        return {
            "type": "object",
            "properties": {name: self.value(depth + 1) for name in names},
            "required": wanted,
            "additionalProperties": False,
        }

    def value(self, depth: int) -> Schema:
        low = self._random.randrange(-50, 50)
        kinds: list[Callable[[], Schema]] = [
            lambda: {"type": "string", "maxLength": self._random.randrange(1, 9)},
            lambda: {"type": "string", "pattern": "^[a-z]{2,4}$"},
            lambda: {"type": "string", "format": "date"},
            lambda: {"enum": ["上海", "Köln", "🎉🎉", "", 5, None]},
            lambda: {"const": {"a": ["你好", 1.5, True]}},
            lambda: {"type": "integer", "minimum": low, "maximum": low + 20},
            lambda: {"type": ["boolean", "null"]},
            lambda: {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]},
            lambda: {
                "type": "array",
                "items": self.value(depth + 1),
                "minItems": 1,
                "maxItems": 3,
            },
            lambda: self.object(depth + 1),
        ]
        return self._random.choice(kinds[: -2 if depth > 2 else None])()


def check(text: str, schema: Schema) -> None:
    value = json.loads(text)
    jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.FormatChecker(["date"])
    ).validate(value)
    assert isinstance(value, dict)
    # Outside of strings: one space, or a new line with its indentation.
    between = re.findall(r"\s+", re.sub(r'"(\\.|[^"\\])*"', '""', text))
    assert all(space == " " or re.fullmatch(r"\n[ \t]{0,32}", space) for space in between)


def one_round(grammars: Grammars, babbler: Babbler, seed: int) -> None:
    schema = Schemas(seed).object()
    kind = ("format", "named", "required", "auto")[seed % 4]
    tools = [Tool("weather", None, schema), TOOLS[1]]
    choice: dict[str, Literal["auto", "required"] | Named] = {
        "named": Named("weather"),
        "required": "required",
    }
    held = constraint_for(
        grammars,
        tools if kind != "format" else (),
        strict=("weather",),
        tool_choice=choice.get(kind, "auto"),
        parallel=seed % 8 < 4,
        response_format=JsonFormat(schema) if kind in ("format", "auto") else None,
    )
    assert held is not None
    reply = read(grammars, babbler.write(held, seed))
    calls = reply.calls
    for call in calls:
        assert call.error is None or (kind == "auto" and call.name == "functions.time")
        if call.name == "functions.weather":
            check(call.arguments, schema)
    if kind in ("format", "auto") and not calls:
        check(reply.text, schema)
        assert [m.channel for m in reply.said].count("final") == 1
    if kind != "auto":
        assert bool(calls) == (kind != "format") and bool(reply.text) == (kind == "format")
    if kind == "named":
        assert {call.name for call in calls} == {"functions.weather"}
    if seed % 8 >= 4:
        assert len(calls) <= 1


def test_two_hundred_rounds(demo: Grammars) -> None:
    babbler = Babbler(demo)
    for seed in range(200):
        one_round(demo, babbler, seed)


def test_with_the_real_vocabulary(real: Grammars) -> None:
    babbler = Babbler(real)
    for seed in range(12):
        one_round(real, babbler, seed)


def next_texts(grammars: Grammars, make: Make, text: str) -> tuple[list[bytes], bool]:
    """What may follow `text`, and whether it may end there."""
    matcher, tokenizer = make(), grammars.package.tokenizer
    for token in tokenizer.encode(text):
        assert matcher.mask()[token], (text, tokenizer.show([token]))
        assert matcher.accept(token)
    mask = matcher.mask()
    assert mask.shape == (grammars.vocabulary.size,)
    assert not (mask & ~grammars.vocabulary.text).any()  # special tokens, padding
    return [grammars.vocabulary.pieces[token] for token in np.flatnonzero(mask)], matcher.complete


@pytest.mark.parametrize("name", ["demo", "real"])
def test_strings_hold_any_character(name: str, request: pytest.FixtureRequest) -> None:
    grammars: Grammars = request.getfixturevalue(name)
    make = grammars.json_object()
    for text in ("你好，世界", "🎉👩‍👩‍👧", "\\n\\u001f<|end|>", "a" * 300, "𝔘 \u2028"):
        followed, complete = next_texts(grammars, make, '{"k": "' + text)
        assert b'"' in followed and b"a" in followed and not complete
        assert next_texts(grammars, make, '{"k": "' + text + '"}') == ([], True)
    followed, _ = next_texts(grammars, make, '{"k": "')
    inside = [piece for piece in followed if b'"' not in piece]
    assert not any(b"\n" in piece or b"\xff" in piece for piece in inside)


@pytest.mark.parametrize("name", ["demo", "real"])
def test_white_space_ends(name: str, request: pytest.FixtureRequest) -> None:
    grammars: Grammars = request.getfixturevalue(name)
    hostile = {
        "type": "object",
        "x-guidance": {"item_separator": " *, *", "whitespace_flexible": 1},
    }
    for make in (grammars.json_object(), grammars.json_schema(hostile)):
        for text in ("{ ", '{"a" ', '{"a": ', '{"a":[1, ', '{"a":[1 ', '{"a":1 ', "{\n" + " " * 32):
            followed, _ = next_texts(grammars, make, text)
            assert followed and not any(piece[:1].isspace() for piece in followed), text
        assert next_texts(grammars, make, '{\n\t"a": {\n    "b": [1, 2]\n  }\n}') == ([], True)
        assert not any(piece[:1].isspace() for piece in next_texts(grammars, make, "")[0])


def test_properties_come_in_order(demo: Grammars) -> None:
    make = demo.json_schema(WEATHER)
    assert next_texts(demo, make, '{"city":"Ulm","days":2}') == ([], True)
    assert not any(piece.startswith(b'"d') for piece in next_texts(demo, make, "{")[0])
    assert b"}" not in next_texts(demo, make, "{")[0]


def test_numbers_may_go_on(demo: Grammars) -> None:
    followed, complete = next_texts(demo, demo.json_schema({"type": "integer"}), "12")
    assert complete and b"3" in followed


def test_what_asks_for_nothing_costs_nothing(
    demo: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Grammars(demo.package)
    assert constraint_for(fresh) is None
    assert constraint_for(fresh, TOOLS) is None
    assert constraint_for(fresh, TOOLS, parallel=False) is None
    assert constraint_for(fresh, tool_choice="none") is None
    assert fresh._loaded is None
    held = constraint_for(fresh, TOOLS, tool_choice="none")
    assert held is not None and fresh._loaded is not None


def begins(grammars: Grammars, held: Constraint | None, text: str) -> bool:
    """Whether a reply may begin with it."""
    package = grammars.package
    assert held is not None
    for place, part in enumerate(text.replace("|>", "<|").split("<|")):
        special = [package.tokenizer.special(f"<|{part}|>")] if place % 2 else None
        for token in special or package.tokenizer.encode(part):
            mask = held.allowed()
            if mask is None or not mask[token]:
                return False
            held.accept(token)
    return True


def test_tool_choice(demo: Grammars) -> None:
    def may(choice: Any, text: str, strict: Collection[str] = ("weather",)) -> bool:
        tools = (*TOOLS, BROWSER_TOOL, PYTHON_TOOL)
        held = constraint_for(demo, tools, strict=strict, tool_choice=choice)
        return begins(demo, held, text)

    weather = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    time = weather.replace("weather", "time")
    final = "<|channel|>final<|message|>Hi"
    assert may("auto", weather + "{") and not may("auto", weather + "city")
    assert may("auto", time + "now") and not may("required", time + "now")
    assert may("required", time + '{"any": 1}<|call|>')
    assert may("auto", final) and may("none", final) and not may("required", final)
    assert not may("none", weather) and not may("none", " to=")
    assert may(Named("time"), time) and not may(Named("time"), weather)
    assert may("required", time + '{"x": 1}<|call|>', ["weather"])
    assert may("required", time + "{}<|call|>", ["time"])
    assert not may("required", time + '{"x"', ["time"])  # it takes no arguments
    browse = "<|channel|>analysis to=browser.search code<|message|>".replace(" code", "")
    assert may("required", browse + '{"query": "x"}<|call|>')
    assert may(Named("browser.search"), browse) and not may(Named("browser.open"), browse)
    python = "<|channel|>analysis to=python code<|message|>"
    assert may("required", python + "print(1)<|call|>")


def test_a_call_follows_another_only_in_parallel(demo: Grammars) -> None:
    two = "<|channel|>commentary to=functions.time json<|message|>{}<|end|><|start|>assistant"
    for parallel in (True, False):
        held = constraint_for(demo, TOOLS, tool_choice="required", parallel=parallel)
        assert begins(demo, held, two) == parallel


def test_formats(demo: Grammars) -> None:
    for schema, text in ((None, '{"anything": [1]}<|return|>'), (WEATHER, '{"city": "Ulm"}')):
        header = "<|channel|>final <|constrain|>json<|message|>"
        held = constraint_for(demo, response_format=JsonFormat(schema))
        assert begins(demo, held, f"<|channel|>analysis<|message|>No {{ JSON.<|end|>"
                      f"<|start|>assistant{header}{text}")  # fmt: skip
        held = constraint_for(demo, response_format=JsonFormat(schema))
        assert not begins(demo, held, header + "[")


def test_tools_that_cannot_be(demo: Grammars) -> None:
    with pytest.raises(UserError, match="tool_choice: there is no tool to call"):
        constraint_for(demo, tool_choice="required")
    with pytest.raises(UserError, match="no tool rain"):
        constraint_for(demo, TOOLS, tool_choice=Named("rain"))
    for parameters, why in (
        ({"type": "string"}, "of no object"),
        ({"type": ["string", "null"]}, "of no object"),
        ({"properties": []}, "enforced"),
        ("{", "no JSON"),
        ("[]", "no JSON schema"),
    ):
        with pytest.raises(UserError, match=rf"^tool f: its parameters' schema .*{why}"):
            constraint_for(demo, [Tool("f", None, parameters)], strict=["f"])


@pytest.mark.parametrize(
    "parameters",
    [{"properties": {"a": {"type": "null"}}}, {"type": ["object", "null"]}, '{"type": "object"}'],
)
def test_arguments_are_an_object(demo: Grammars, parameters: Mapping[str, Any] | str) -> None:
    header = "<|channel|>commentary to=functions.f<|message|>"
    for text in ("{}<|call|>", "null<|call|>", '"'):
        held = constraint_for(demo, [Tool("f", None, parameters)], strict=["f"])
        assert begins(demo, held, header + text) == text.startswith("{")


def test_stop_ids(demo: Grammars) -> None:
    assert 3 in demo.package.stop_ids  # a token of text
    text = demo.vocabulary.pieces[3].decode()
    header = "<|channel|>commentary<|message|>"
    assert text.isprintable()
    for stop_ids, may in ((None, False), (demo.package.harmony.stop_ids, True)):
        held = constraint_for(demo, response_format=JsonFormat(), stop_ids=stop_ids)
        assert begins(demo, held, header + text) == may
