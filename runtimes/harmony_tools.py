"""Tools as harmony's system and developer messages declare them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.json_values import plain, read_json
from gptoss_onnx.runtimes.tool_schema import typescript

FUNCTION_NAMESPACE = "functions"  # the namespace of an application's own tools
# A call is a name behind `to=`, which white space and `<` end, and a declaration is
# `type name = (...) => any;` between braces: other characters would make it something else.
_NO_NAME = re.compile(
    r"[\0-\x20\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f\u3000\ufeff<>(){};=]"
)


@dataclass(frozen=True)
class Tool:
    """A function the model may call.

    `parameters` is a JSON schema, or the JSON text of one; None for no arguments.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | str | None = None


@dataclass(frozen=True)
class ToolNamespace:
    """Tools under a name of their own: the model calls `name.tool`, or `name` if it has none."""

    name: str
    description: str | None = None
    tools: Sequence[Tool] = ()


def in_namespaces(tools: Sequence[Tool | ToolNamespace]) -> list[ToolNamespace]:
    """`tools` by namespace, in the order of names; a `Tool` of its own is one of `functions`."""
    for tool in tools:
        if not isinstance(tool, Tool | ToolNamespace):
            raise UserError(f"a tool is a {type(tool).__name__}: give a Tool or a ToolNamespace")
    own = [tool for tool in tools if isinstance(tool, Tool)]
    named = [tool for tool in tools if isinstance(tool, ToolNamespace)]
    found = [*named, ToolNamespace(FUNCTION_NAMESPACE, tools=own)] if own else named
    _names([namespace.name for namespace in found], "a tool namespace")
    return sorted(found, key=lambda namespace: namespace.name)


def tool_names(tools: Sequence[Tool | ToolNamespace]) -> list[str]:
    """What a call may name: `weather` for one of `functions`, `browser.search`, `python`."""
    names = []
    for namespace in in_namespaces(tools):
        prefix = "" if namespace.name == FUNCTION_NAMESPACE else f"{namespace.name}."
        names += [prefix + tool.name for tool in namespace.tools] or [namespace.name]
    return names


def render_tools(namespaces: Sequence[ToolNamespace]) -> str:
    """The tools as the declarations the model was trained on; UserError for what is no tool."""
    return "\n\n".join(["# Tools", *map(_section, namespaces)])


def _section(namespace: ToolNamespace) -> str:
    name, tools = namespace.name, namespace.tools
    _names([tool.name for tool in tools], f"a tool of {name}")
    lines = [f"## {name}", ""]
    about = _lines(namespace.description, f"tool namespace {name}")
    if not tools:
        return "\n".join([*lines, *about])
    lines += [*(f"// {line}" for line in about), f"namespace {name} {{", ""]
    for tool in tools:
        lines += [f"// {line}" for line in _lines(tool.description, f"tool {tool.name}")]
        lines += [f"type {tool.name} = ({_arguments(tool)}) => any;", ""]
    return "\n".join([*lines, f"}} // namespace {name}"])


def _arguments(tool: Tool) -> str:
    where = f"tool {tool.name}: parameters"
    schema: Any = tool.parameters
    schema = read_json(schema, where) if isinstance(schema, str) else plain(schema, where)
    if schema is None:
        return ""
    if not isinstance(schema, dict | bool):
        raise UserError(f"{where} are no JSON schema: give an object, or nothing for no arguments")
    return f"_: {typescript(schema)}"


def _lines(text: str | None, where: str) -> list[str]:
    """Lines as Rust's str::lines has them: only a line feed ends one."""
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: the description is a {type(text).__name__}: give text")
    lines = re.split(r"\r?\n", text or "")
    return lines if lines[-1] else lines[:-1]


def _names(names: Sequence[str], what: str) -> None:
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise UserError(f"{what} has no name: give one")
        if wrong := _NO_NAME.search(name):
            raise UserError(
                f"{what} is named {json.dumps(name)}: a model could not call it for the "
                f"{json.dumps(wrong[0])}"
            )
        if name in names[:place]:
            raise UserError(f"{what} is named {name}, and so is another: give names that differ")


# The two that gpt-oss was trained with, in openai-harmony's words. It calls them on the analysis
# channel, as `browser.search` and as `python` with the code as it is.
BROWSER_TOOL = ToolNamespace(
    "browser",
    "Tool for browsing.\n"
    "The `cursor` appears in brackets before each browsing display: `[{cursor}]`.\n"
    "Cite information from the tool using the following format:\n"
    "`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.\n"
    "Do not quote more than 10 words directly from the tool output.\n"
    "sources=web (default: web)",
    (
        Tool(
            "search",
            "Searches for information related to `query` and displays `topn` results.",
            {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "topn": {"type": "number", "default": 10},
                    "source": {"type": "string"},
                },
                "required": ["query"],
            },
        ),
        Tool(
            "open",
            "Opens the link `id` from the page indicated by `cursor` starting at line number "
            "`loc`, showing `num_lines` lines.\n"
            "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
            "If `cursor` is not provided, the most recent page is implied.\n"
            "If `id` is a string, it is treated as a fully qualified URL associated with "
            "`source`.\n"
            "If `loc` is not provided, the viewport will be positioned at the beginning of the "
            "document or centered on the most relevant passage, if available.\n"
            "Use this function without `id` to scroll to a new location of an opened page.",
            {
                "type": "object",
                "properties": {
                    "id": {"type": ["number", "string"], "default": -1},
                    "cursor": {"type": "number", "default": -1},
                    "loc": {"type": "number", "default": -1},
                    "num_lines": {"type": "number", "default": -1},
                    "view_source": {"type": "boolean", "default": False},
                    "source": {"type": "string"},
                },
            },
        ),
        Tool(
            "find",
            "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.",
            {
                "type": "object",
                "properties": {
                    "pattern": {"type": "string"},
                    "cursor": {"type": "number", "default": -1},
                },
                "required": ["pattern"],
            },
        ),
    ),
)
PYTHON_TOOL = ToolNamespace(
    "python",
    "Use this tool to execute Python code in your chain of thought. The code will not be shown to "
    "the user. This tool should be used for internal reasoning, but not for code that is intended "
    "to be visible to the user (e.g. when creating plots, tables, or files).\n\n"
    "When you send a message containing Python code to python, it will be executed in a stateful "
    "Jupyter notebook environment. python will respond with the output of the execution or time "
    "out after 120.0 seconds. The drive at '/mnt/data' can be used to save and persist user files. "
    "Internet access for this session is UNKNOWN. Depends on the cluster.",
)
