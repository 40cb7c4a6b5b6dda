"""Calls in a conversation: which are made, run and answered, under which names."""

from __future__ import annotations

import numpy as np
import pytest

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Message, Tool
from gptoss_onnx.runtimes.harmony_tools import ToolNamespace
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import ToolCall
from tests.runtimes.conftest import TinyModel
from tests.runtimes.scripted import (
    ANSWER,
    ARGUMENTS,
    CALL,
    CALLS,
    THOUGHT,
    TOOL,
    Script,
    encode,
    make,
    make_like,
    rendered,
    text,
)


@pytest.mark.parametrize("call", CALLS, ids=["channel first", "recipient first"])
def test_a_tool_call_and_its_result(
    package: Package, model: TinyModel, says: Script, call: str
) -> None:
    chat = make(package, tools=[TOOL])
    says(call)
    events = list(chat.send("Weather?"))
    assert text(events) == {"analysis": "Ask.", "commentary": '{"city": "Ulm"}'}
    assert {(e.kind, e.message, e.recipient) for e in events} == {
        ("analysis", 0, None),
        ("call", 1, "functions.weather"),
    }
    assert chat.finish_reason == "tool_call"
    assert chat.tool_calls == [ToolCall("functions.weather", '{"city": "Ulm"}')]
    held = list(chat.session.tokens)

    chat.add_tool_result("weather", '{"sun": true}')
    says(ANSWER)
    assert text(chat.resume())["final"] == "Grüße!"
    assert (chat.finish_reason, chat.tool_calls) == ("stop", [])
    # The analysis was kept, and with it everything the cache held.
    assert chat.usage.reused_tokens == len(held)
    result = chat.messages[3]
    assert result == Message("functions.weather", '{"sun": true}', "commentary", "assistant")
    told = '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>{"sun": true}'
    assert chat.usage.prompt_tokens - chat.usage.reused_tokens == len(
        encode(package, f"<|call|>{told}<|end|><|start|>assistant")
    )
    fresh = rendered(make_like(chat, chat.messages[:4]))
    wanted = model.logits([*fresh, *encode(package, ANSWER)])[len(fresh) - 1 : -1]
    assert np.abs(np.stack(says.logits) - wanted).max() < 1e-3  # type: ignore[attr-defined]

    says(ANSWER)
    list(chat.send("Thanks"))
    assert chat.usage.reused_tokens > 0
    assert [m.channel for m in chat.messages].count("analysis") == 3  # history keeps, render drops


@pytest.mark.parametrize(
    ("called", "answered"),
    [
        ("get_weather", "get_weather"),
        ("functions.get_weather", "get_weather"),
        ("get_weather", "functions.get_weather"),
        ("python", "python"),
        ("files.read", "files.read"),
        ("functions.files.read", "files.read"),
    ],
)
def test_a_result_is_told_by_the_name_the_model_used(
    package: Package, says: Script, called: str, answered: str
) -> None:
    chat = make(package, tools=[TOOL])
    says(CALL.replace("functions.weather", called))
    list(chat.send("Weather?"))
    chat.add_tool_result(answered, "sun")
    assert chat.messages[-1] == Message(called, "sun", "commentary", "assistant")


def test_results_of_two_calls(package: Package, says: Script) -> None:
    chat = make(package, tools=[TOOL])
    second = "<|start|>assistant<|channel|>commentary to=get_time<|message|>{}<|call|>"
    says(CALL.replace("<|call|>", "<|end|>") + second)
    list(chat.send("Weather?"))
    assert [call.name for call in chat.tool_calls] == ["functions.weather", "get_time"]
    chat.answer_calls(lambda call: f"{call.name}: {call.arguments}")
    assert [(m.role, m.content) for m in chat.messages[-2:]] == [
        ("functions.weather", 'functions.weather: {"city": "Ulm"}'),
        ("get_time", "get_time: {}"),
    ]


def test_a_call_on_the_analysis_channel_keeps_its_result(package: Package, says: Script) -> None:
    chat = make(package)
    says(f"{THOUGHT}<|channel|>analysis to=python code<|message|>1 + 1<|call|>")
    list(chat.send("Add."))
    chat.answer_calls(lambda _: "2")  # code is no JSON, and is run all the same
    says(ANSWER)
    list(chat.resume())
    chat.messages.append(Message("user", "And now?"))
    shown = package.tokenizer.show(rendered(chat))
    assert "assistant<|channel|>analysis to=python code<|message|>1 + 1<|call|>" in shown
    assert "<|start|>python to=assistant<|channel|>analysis<|message|>2<|end|>" in shown
    assert "Ask." not in shown
    assert "Hm." not in shown


def test_a_known_tool_is_called_without_to(package: Package, says: Script) -> None:
    call = f"<|channel|>commentary weather <|constrain|>json{ARGUMENTS}"
    for tools, calls in (([TOOL], ["weather"]), ([], [])):
        chat = make(package, tools=tools)
        says(call)
        kinds = {event.kind for event in chat.send("Weather?")}
        assert [found.name for found in chat.tool_calls] == calls
        assert kinds == {"call" if calls else "commentary"}


def test_a_tool_of_a_namespace_is_known_by_its_whole_name(package: Package, says: Script) -> None:
    for name, calls in (("browser.search", 1), ("browser", 0), ("python", 1)):
        chat = make(
            package,
            tools=[ToolNamespace("browser", tools=[Tool("search")]), ToolNamespace("python")],
        )
        says(f"<|channel|>commentary {name}{ARGUMENTS}")
        list(chat.send("Weather?"))
        assert [call.name for call in chat.tool_calls] == [name] * calls


def test_arguments_that_are_no_json_are_answered_not_run(package: Package, says: Script) -> None:
    chat = make(package, tools=[TOOL])
    says(CALL.replace('{"city"', "{'city'"))
    list(chat.send("Weather?"))
    ran: list[ToolCall] = []

    def run(call: ToolCall) -> str:
        ran.append(call)
        return "sun"

    chat.answer_calls(run)
    assert ran == []
    told = chat.messages[-1]
    assert (told.role, told.content.splitlines()) == ("functions.weather", [told.content])
    assert told.content.startswith("Error: the arguments are no JSON object")
    says(CALL)
    list(chat.resume())
    chat.answer_calls(run)
    assert [call.arguments for call in ran] == ['{"city": "Ulm"}']
    assert chat.messages[-1].content == "sun"


@pytest.mark.parametrize("behind", ["", "<|message|>", "<|message|> \n"])
def test_a_call_without_arguments_is_none(package: Package, says: Script, behind: str) -> None:
    chat = make(package, tools=[TOOL])
    says(f"{THOUGHT}<|channel|>commentary to=functions.weather {behind}<|call|>")
    assert {event.kind for event in chat.send("Weather?")} == {"analysis"}
    assert (chat.finish_reason, chat.tool_calls) == ("stop", [])
    assert not any(message.recipient for message in chat.messages)


def test_only_a_call_that_was_made_can_be_answered(package: Package, says: Script) -> None:
    chat = make(package, tools=[TOOL])
    with pytest.raises(UserError, match=r"of weather was not asked for: .* no tool"):
        chat.add_tool_result("weather", "sun")
    says(CALL)
    list(chat.send("Weather?"))
    with pytest.raises(UserError, match=r"functions\.time was not .* called functions\.weather"):
        chat.add_tool_result("functions.time", "noon")
