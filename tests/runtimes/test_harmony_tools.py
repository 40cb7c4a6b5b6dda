"""Tools are declared as OpenAI's own package declares them, letter for letter."""

from __future__ import annotations

import datetime
import enum
import json
import random
import types
from typing import Any

import openai_harmony as reference
import pytest

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony_tools import (
    BROWSER_TOOL,
    PYTHON_TOOL,
    Tool,
    ToolNamespace,
    in_namespaces,
    render_tools,
)
from gptoss_onnx.runtimes.json_values import read_json
from tests.runtimes.schemas import NUMBERS, make_schema
from tests.runtimes.tool_cases import REFUSED, SYSTEMS, TOOLS, Given, make_system, make_tool


def declared(tools: list[Any]) -> str:
    return render_tools(in_namespaces(tools))


def in_openai(oracle: reference.HarmonyEncoding, content: Given) -> str:
    """Content of a message as openai-harmony renders it. It is given JSON: number forms count."""
    role = content["type"].removesuffix("_content")
    # Text in place of each schema, put back as it stands: json.dumps would write its numbers anew.
    schemas: list[str] = []

    def hide(tool: Given) -> Given:
        value = tool.get("parameters")
        schemas.append(value if isinstance(value, str) else json.dumps(value))
        return {"name": tool["name"], "description": tool.get("description") or "",
                "parameters": f"#{len(schemas) - 1}#"}  # fmt: skip

    namespaces = {
        space["name"]: {**space, "tools": list(map(hide, space["tools"]))}
        for space in content.get("tools", [])
    }
    text = json.dumps({"role": role, "content": [{**content, "tools": namespaces}]})
    for place, schema in enumerate(schemas):
        text = text.replace(f'"#{place}#"', schema)
    functions = {"conversation_has_function_tools": content.get("has_functions", False)}
    shown = oracle.decode(oracle._inner.render(text, functions))
    return shown.removeprefix(f"<|start|>{role}<|message|>").removesuffix("<|end|>")


def openai_tools(oracle: reference.HarmonyEncoding, tools: list[Given]) -> str:
    own = [tool for tool in tools if "tools" not in tool]
    spaces = [{"description": None, **tool} for tool in tools if "tools" in tool]
    if own:
        spaces.append({"name": "functions", "description": None, "tools": own})
    return in_openai(oracle, {"type": "developer_content", "tools": spaces})


@pytest.mark.parametrize("name", TOOLS)
def test_tools_are_declared_as_by_openai(oracle: reference.HarmonyEncoding, name: str) -> None:
    assert declared(list(map(make_tool, TOOLS[name]))) == openai_tools(oracle, TOOLS[name])


def test_schemas_of_all_kinds_are_types_as_by_openai(oracle: reference.HarmonyEncoding) -> None:
    draw = random.Random(5)
    for _ in range(500):
        schema = make_schema(draw)
        wanted = openai_tools(oracle, [{"name": "f", "parameters": f'{{"items": {schema}}}'}])
        assert declared([Tool("f", None, f'{{"items": {schema}}}')]) == wanted
        within = f'{{"type": "object", "properties": {{"x": {schema}}}}}'
        wanted = openai_tools(oracle, [{"name": "f", "parameters": within}])
        assert declared([Tool("f", None, within)]) == wanted
        plain = json.loads(within)  # -0 and long numbers are other values in Python than in text
        wanted = openai_tools(oracle, [{"name": "f", "parameters": json.dumps(plain)}])
        assert declared([Tool("f", None, plain)]) == wanted


def test_numbers_are_written_as_by_openai(oracle: reference.HarmonyEncoding) -> None:
    draw = random.Random(6)

    def digits(most: int) -> str:
        return "".join(draw.choice("0123456789") for _ in range(draw.randrange(1, most)))

    numbers = list(NUMBERS)
    for _ in range(2000):
        fraction = draw.choice(["", f".{digits(25)}"])
        power = draw.choice(["", f"e{draw.randrange(-330, 280)}", f"E+{draw.randrange(20)}"])
        numbers.append(f"{draw.choice(['', '-'])}{int(digits(25))}{fraction}{power}")
    fields = [f'"p{place}": {{"default": {number}}}' for place, number in enumerate(numbers)]
    schema = f'{{"type": "object", "properties": {{{", ".join(fields)}}}}}'
    wanted = openai_tools(oracle, [{"name": "f", "parameters": schema}])
    assert declared([Tool("f", None, schema)]) == wanted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-7, "1e-7"), (1e20, "1e20"), (1e-5, "0.00001"), (1.0, "1.0"), (-0.0, "-0.0"), (0, "0"),
        (10**20, "1e20"), (2**64 - 1, "18446744073709551615"), (0.1 + 0.2, "0.30000000000000004"),
        (True, "true"), (None, "null"), ("a", '"a"'), ((1, "é\n"), '[1,"é\\n"]'),
        ({1: 1, None: 2.0, False: 3, 1.5: 4, "": {}}, '{"1":1,"null":2.0,"false":3,"1.5":4,"":{}}'),
        (types.MappingProxyType({"a": []}), '{"a":[]}'),
    ],
)  # fmt: skip
def test_python_values_as_defaults(value: Any, text: str) -> None:
    schema = {"type": "object", "properties": {"p": {"default": value}}}
    assert f"p?: any, // default: {text}\n" in declared([Tool("f", None, schema)])


class Unit(str, enum.Enum):  # noqa: UP042  (what StrEnum mends)
    C = "celsius"


def test_text_of_a_str_enum_is_its_value() -> None:
    kind = {"type": "string", "enum": [Unit.C], "default": Unit.C}
    text = declared([Tool("f", None, {"type": "object", "properties": {Unit.C: kind}})])
    assert 'celsius?: "celsius", // default: celsius\n' in text


def circle() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"default": float("nan")}, r"tool f: parameters.default holds nan"),
        ({"properties": {"a b": {"maximum": 10**400}}}, r'parameters.properties\["a b"\].maximum'),
        ({"maximum": 10**308 * 2}, r"parameters.maximum holds a number beyond"),
        ({"default": datetime.date(2026, 1, 1)}, r"parameters.default is a date"),
        ({"enum": [1, {2}]}, r"parameters.enum\[1\] is a set"),
        ({"properties": {(1, 2): {}}}, r"parameters.properties has a tuple as key"),
        (circle(), r"tool f: parameters.items.*i is nested deeper than 128 levels"),
        (object(), r"tool f: parameters is a object"),
    ],
)
def test_what_json_cannot_hold_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        declared([Tool("f", None, schema)])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_tool_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(UserError) as caught:
        declared(list(map(make_tool, REFUSED[name])))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_an_openai_dict_is_no_tool() -> None:
    with pytest.raises(UserError, match="a tool is a dict: give a Tool"):
        declared([{"type": "function", "function": {"name": "f"}}])


@pytest.mark.parametrize("name", SYSTEMS)
def test_built_in_tools_are_those_of_openai(oracle: reference.HarmonyEncoding, name: str) -> None:
    given = SYSTEMS[name]
    system = make_system(given, [BROWSER_TOOL, PYTHON_TOOL])
    config = {"browser": reference.ToolNamespaceConfig.browser(),
              "python": reference.ToolNamespaceConfig.python()}  # fmt: skip
    effort = system.reasoning and system.reasoning.capitalize()
    wanted = in_openai(oracle, {
        "type": "system_content", "model_identity": system.identity, "reasoning_effort": effort,
        "conversation_start_date": system.date, "knowledge_cutoff": system.knowledge_cutoff,
        "channel_config": {"valid_channels": list(system.channels), "channel_required": True},
        "tools": [config[tool].model_dump() for tool in given["tools"]],
        "has_functions": given.get("has_functions", False),
    })  # fmt: skip
    assert system.text(has_functions=given.get("has_functions", False)) == wanted


def test_a_browser_of_your_own_words() -> None:
    tools = [ToolNamespace("browser", "Mine", [Tool("go")])]
    assert "## browser\n\n// Mine\nnamespace browser {\n\ntype go = () => any;\n" in declared(tools)


def test_json_text_is_read_as_python_reads_it() -> None:
    assert read_json(' {"a": [true, null, "\\u00e9"]} ', "x") == {"a": [True, None, "é"]}
