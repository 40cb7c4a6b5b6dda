"""What an agent is asked, and the one call that answers it: six tools, five questions each.

The kinds of tools and arguments are those of openai/gpt-oss's compatibility-test; words are ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    parameters: Json
    output: str

    @property
    def function(self) -> Json:
        """As both APIs declare it."""
        return {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": False,
        }


@dataclass(frozen=True)
class Case:
    tool: Tool
    question: str
    arguments: Json

    @property
    def written(self) -> str:
        """The arguments as a model writes them."""
        return json.dumps(self.arguments, ensure_ascii=False)


def _object(required: tuple[str, ...], **properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _text(description: str, **others: Any) -> Json:
    return {"type": "string", "description": description, **others}


STATUS = Tool(
    "service_status",
    "Says whether the service is up.",
    {"type": "object", "properties": {}},  # no more than that: nothing is required
    '{"up": true, "since": 86400}',
)
RENDER = Tool(
    "render_markdown",
    "Makes HTML of Markdown.",
    _object(("source",), source=_text("Markdown")),
    '{"html": "<p>Fertig &amp; gut</p>"}',
)
LANGUAGE = Tool(
    "guess_language",
    "Names a text's language.",
    _object(("sample",), sample=_text("The text")),
    '{"code": "sv", "probability": 0.97}',
)
CHART = Tool(
    "draw_chart",
    "Draws numbers.",
    _object(
        ("points", "kind"),
        points={"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        kind={"type": "string", "enum": ["bar", "line", "scatter"]},
        title=_text("Above it", default=""),
        x_axis=_text("Below it", default=""),
        y_axis=_text("Beside it", default=""),
    ),
    '{"png": "iVBORw0KGgo="}',
)
ROWS = Tool(
    "select_rows",
    "Reads a table.",
    _object(
        ("table", "columns"),
        table=_text("Its name"),
        columns={"type": "array", "items": {"type": "string"}},
        where=_text("A condition", default=""),
        most={"type": "integer", "minimum": 1, "maximum": 10000, "default": 100},
        order=_text("A column", default=""),
    ),
    '{"rows": [{"id": 7, "mail": "ann@example.org"}], "count": 1}',
)
FORECAST = Tool(
    "local_weather",
    "Tells the weather somewhere.",
    _object(("place",), place=_text("Where")),
    '{"sky": "überwiegend klar"}',
)

CASES = (
    Case(STATUS, "Is all well?", {}),
    Case(STATUS, "Before I begin: are you healthy?", {}),
    Case(STATUS, "一切正常吗？", {}),
    Case(STATUS, "How long have you been up?", {}),
    Case(STATUS, "ping", {}),
    Case(RENDER, "As HTML:\n\n# Plan\n\nDo *less*.", {"source": "# Plan\n\nDo *less*."}),
    Case(RENDER, "What is `### Notes` as HTML?", {"source": "### Notes"}),
    Case(RENDER, "Render:\n\n- tea\n- \"milk\"\n", {"source": "- tea\n- \"milk\""}),
    Case(RENDER, "I wrote **so** and want HTML.", {"source": "**so**"}),
    Case(RENDER, "> said he \\o/", {"source": "> said he \\o/"}),
    Case(LANGUAGE, "Which language is 'Hur mår du i dag?'", {"sample": "Hur mår du i dag?"}),
    Case(LANGUAGE, "Language of \"Dobrý večer\"?", {"sample": "Dobrý večer"}),
    Case(LANGUAGE, "这是什么语言：今日は寒いですね。", {"sample": "今日は寒いですね。"}),
    Case(LANGUAGE, "And 'Доброе утро, друзья' is?", {"sample": "Доброе утро, друзья"}),
    Case(LANGUAGE, "مساء الخير 👋🏽", {"sample": "مساء الخير 👋🏽"}),
    Case(CHART, "A line through (1,1), (2,3), (3,7).",
         {"points": [[1, 1], [2, 3], [3, 7]], "kind": "line"}),
    Case(CHART, "Bars of 4, 5 and 6 for spring to autumn.",
         {"points": [[1, 4], [2, 5], [3, 6]], "kind": "bar", "title": "By season"}),
    Case(CHART, "Scatter [[0,-1],[1,2.25]], titled 'Run', axes s and °C.",
         {"points": [[0, -1], [1, 2.25]], "kind": "scatter", "title": "Run", "x_axis": "s",
          "y_axis": "°C"}),
    Case(CHART, "Line of 61, 64, 60 by 'Week'.",
         {"points": [[1, 61], [2, 64], [3, 60]], "kind": "line", "x_axis": "Week"}),
    Case(CHART, "Readers a day as bars: 120, 90.",
         {"points": [[1, 120], [2, 90]], "kind": "bar", "title": "Readers", "y_axis": "a day"}),
    Case(ROWS, "Id and mail of 8 members.",
         {"table": "members", "columns": ["id", "mail"], "most": 8}),
    Case(ROWS, "Numbers and sums of bills that are 'paid'.",
         {"table": "bills", "columns": ["number", "sum"], "where": "state = 'paid'"}),
    Case(ROWS, "The 12 dearest books, with prices.",
         {"table": "books", "columns": ["title", "price"], "most": 12, "order": "price DESC"}),
    Case(ROWS, "The newest 2 entries of the journal.",
         {"table": "journal", "columns": ["id", "time", "what"], "most": 2}),
    Case(ROWS, "Clients of Malmö: name, town.",
         {"table": "clients", "columns": ["name", "town"], "where": "town = \"Malmö\""}),
    Case(FORECAST, "Is it raining in Porto?", {"place": "Porto"}),
    Case(FORECAST, "Weather, Nairobi.", {"place": "Nairobi"}),
    Case(FORECAST, "And for 90210?", {"place": "90210"}),
    Case(FORECAST, "成都今天天气怎么样？", {"place": "成都"}),
    Case(FORECAST, "Do I need a coat in Tromsø?", {"place": "Tromsø"}),
)  # fmt: skip
