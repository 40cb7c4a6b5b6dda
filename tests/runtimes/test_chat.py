"""Conversations: streaming, history, the KV cache between turns, tool calls, cancelling."""

from __future__ import annotations

import datetime
import io
import threading
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_onnx.runtimes import generation, system_prompt
from gptoss_onnx.runtimes.chat import Chat
from gptoss_onnx.runtimes.console import chat_loop
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Message, SystemPrompt, Tool
from gptoss_onnx.runtimes.harmony_tools import ToolNamespace
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import ToolCall
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.stream_parser import Event
from tests.runtimes.conftest import TinyModel

SYSTEM = SystemPrompt(identity="Tiny.", date="2026-01-01")
TOOL = Tool("weather", "Tells the weather.", {"type": "object", "properties": {}})
Script = Callable[[str], None]


class Spoken(Exception):
    """The script ended without a stop token."""


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, package: Package) -> Script:
    """says(text): what the model will answer, marks written out; its logits are still computed.

    The scripted sampler also keeps the logits it was shown, in `says.logits`.
    """
    tokens: list[int] = []
    logits: list[NDArray[np.float32]] = []

    class Scripted:
        def __init__(self, *_: Any) -> None: ...

        def next(self, scores: NDArray[np.float32]) -> int:
            logits.append(scores.copy())
            if not tokens:
                raise Spoken
            return tokens.pop(0)

    def script(text: str) -> None:
        tokens[:] = encode(package, text)
        logits.clear()

    script.logits = logits  # type: ignore[attr-defined]
    monkeypatch.setattr(generation, "Sampler", Scripted)
    return script


def encode(package: Package, text: str) -> list[int]:
    ids: list[int] = []
    for place, part in enumerate(text.replace("|>", "<|").split("<|")):
        ids += [package.tokenizer.special(f"<|{part}|>")] if place % 2 else (
            package.tokenizer.encode(part)
        )  # fmt: skip
    return ids


def make(package: Package, **others: Any) -> Chat:
    return Chat(package, system=SYSTEM, **others)


def text(events: Iterable[Event]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for event in events:
        joined[event.channel] = joined.get(event.channel, "") + event.text
    return joined


def rendered(chat: Chat, reply: bool = True) -> list[int]:
    return chat.package.harmony.render(
        chat.messages, system=SYSTEM, instructions=chat.instructions, tools=chat.tools, reply=reply
    )


ANSWER = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    "<|channel|>final<|message|>Grüße!<|return|>"
)


def test_a_turn_streams_whole_characters(package: Package, says: Script) -> None:
    chat = make(package)
    says(ANSWER)
    events = list(chat.send("Hallo"))
    assert text(events) == {"analysis": "Hm.", "final": "Grüße!"}
    assert [event.text for event in events if event.channel == "final"] == list("Grüße!")
    assert chat.finish_reason == "stop"
    assert chat.messages == [
        Message("user", "Hallo"),
        Message("assistant", "Hm.", "analysis"),
        Message("assistant", "Grüße!", "final"),
    ]
    assert chat.usage.new_tokens == len(encode(package, ANSWER))


def test_the_model_sees_the_rendered_conversation(
    package: Package, model: TinyModel, says: Script
) -> None:
    chat = make(package, instructions="Be brief.")
    for turn in ("One", "Two", "Three"):
        says(ANSWER)
        list(chat.send(turn))
        fresh = rendered(make_like(chat, chat.messages[:-2]))
        wanted = model.logits([*fresh, *encode(package, ANSWER)])[len(fresh) - 1 : -1]
        assert np.abs(np.stack(says.logits) - wanted).max() < 1e-3  # type: ignore[attr-defined]


def make_like(chat: Chat, messages: list[Message]) -> Chat:
    other = make(chat.package, instructions=chat.instructions, tools=chat.tools)
    other.messages = list(messages)
    return other


def test_the_next_turn_goes_back_to_where_the_reply_began(package: Package, says: Script) -> None:
    chat = make(package)
    says(ANSWER)
    list(chat.send("One"))
    first_prompt = chat.usage.prompt_tokens
    says(ANSWER)
    list(chat.send("Two"))
    assert chat.usage.reused_tokens == first_prompt
    assert "Hm." not in package.tokenizer.decode(chat.session.tokens[first_prompt:-40])
    fed = chat.usage.prompt_tokens - chat.usage.reused_tokens
    final = "<|channel|>final<|message|>Grüße!<|end|><|start|>user<|message|>Two<|end|>"
    assert fed == len(encode(package, f"{final}<|start|>assistant"))


def test_reasoning_is_kept_where_asked(package: Package, model: TinyModel, says: Script) -> None:
    chat = make(package, auto_drop_analysis=False)
    says(ANSWER)
    list(chat.send("One"))
    says(ANSWER)
    list(chat.send("Two"))
    shown = [*chat.messages[:3], Message("user", "Two")]
    prompt = package.harmony.render(shown, system=SYSTEM, auto_drop_analysis=False)
    assert package.harmony.render(shown, system=SYSTEM) != prompt
    wanted = model.logits([*prompt, *encode(package, ANSWER)])[len(prompt) - 1 : -1]
    assert np.abs(np.stack(says.logits) - wanted).max() < 1e-3  # type: ignore[attr-defined]


def test_today_is_the_first_turns_day_past_midnight_too(
    package: Package, says: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        day = 31

        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date(2026, 1, cls.day)

    monkeypatch.setattr(system_prompt, "datetime", SimpleNamespace(date=Clock))
    chat = Chat(package)
    assert chat.system == SystemPrompt(date="2026-01-31")
    says(ANSWER)
    list(chat.send("One"))
    first = chat.usage.prompt_tokens
    Clock.day = 1
    says(ANSWER)
    list(chat.send("Two"))
    assert chat.usage.reused_tokens == first
    assert Chat(package, system=None).system is None


THOUGHT = "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant"
ARGUMENTS = '<|message|>{"city": "Ulm"}<|call|>'
CALL = THOUGHT + "<|channel|>commentary to=functions.weather <|constrain|>json" + ARGUMENTS
# As models write it mostly, and as openai-harmony renders it.
CALLS = [CALL, f"{THOUGHT} to=functions.weather<|channel|>commentary <|constrain|>json{ARGUMENTS}"]


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


def cut(chat: Chat, question: str, after: str) -> None:
    """Listen until `after` was said, then cancel, and go on listening."""
    heard = ""
    for event in chat.send(question):
        heard += event.text
        if heard.endswith(after):
            chat.cancel()
    assert heard.endswith(after)


def test_a_cancelled_turn_keeps_what_was_said(
    package: Package, model: TinyModel, says: Script
) -> None:
    chat = make(package)
    says(ANSWER)
    cut(chat, "One", "Gr")
    assert chat.finish_reason == "cancelled"
    assert chat.messages == [Message("user", "One"), Message("assistant", "Gr", "final")]
    says(ANSWER)
    assert text(chat.send("Two"))["final"] == "Grüße!"
    fresh = rendered(make_like(chat, chat.messages[:3]))
    wanted = model.logits([*fresh, *encode(package, ANSWER)])[len(fresh) - 1 : -1]
    assert np.abs(np.stack(says.logits) - wanted).max() < 1e-3  # type: ignore[attr-defined]


@pytest.mark.parametrize(("reply", "after"), [(ANSWER, "H"), (CALL, '{"ci')])
def test_cancelled_reasoning_and_calls_are_dropped(
    package: Package, says: Script, reply: str, after: str
) -> None:
    chat = make(package, tools=[TOOL])
    says(reply)
    cut(chat, "One", after)
    assert chat.messages == [Message("user", "One")]
    assert (chat.finish_reason, chat.tool_calls) == ("cancelled", [])


def test_cancelling_from_another_thread(package: Package, says: Script) -> None:
    chat = make(package)
    says("<|channel|>final<|message|>" + "la" * 500)
    heard = 0
    for _ in chat.send("Sing"):
        heard += 1
        if heard == 10:
            thread = threading.Thread(target=chat.cancel)
            thread.start()
            thread.join()
    assert heard == 10
    assert chat.finish_reason == "cancelled"


def test_an_abandoned_turn_is_a_cancelled_one(package: Package, says: Script) -> None:
    chat = make(package)
    says("<|channel|>final<|message|>abcdef<|return|>")
    turn = chat.send("One")
    assert next(turn) == Event("final", "a")
    turn.close()  # type: ignore[attr-defined]
    assert chat.messages == [Message("user", "One"), Message("assistant", "a", "final")]
    assert chat.finish_reason == "cancelled"
    says(ANSWER)
    assert text(chat.send("Two"))["final"] == "Grüße!"


def test_a_length_limit(package: Package, says: Script) -> None:
    chat = make(package)
    says("<|channel|>final<|message|>abcdef<|return|>")
    limit = len(encode(package, "<|channel|>final<|message|>abc"))
    assert text(chat.send("One", max_new_tokens=limit)) == {"final": "abc"}
    assert chat.finish_reason == "length"
    assert chat.messages[-1] == Message("assistant", "abc", "final")
    assert chat.options.max_new_tokens is None


@pytest.mark.parametrize(
    ("said", "missing", "heard"),
    [("<|channel|>final<|message|>Grü", 1, "Gr\ufffd"), ("no header", 0, "no header")],
    ids=["half a character", "a header that never ended"],
)
def test_a_cut_reply_gives_all_it_held(
    package: Package, says: Script, said: str, missing: int, heard: str
) -> None:
    chat = make(package)
    says(said)
    limit = len(encode(package, said)) - missing
    assert text(chat.send("One", max_new_tokens=limit)) == {"final": heard}
    assert chat.messages[-1] == Message("assistant", heard, "final")


def test_one_turn_at_a_time(package: Package, says: Script) -> None:
    session = Session(package)
    chat, other = make(package, session=session), make(package, session=session)
    says("<|channel|>final<|message|>abc<|return|>")
    turn = chat.send("One")
    next(turn)
    with pytest.raises(RuntimeError, match="this chat is answering already"):
        next(chat.send("Two"))
    with pytest.raises(RuntimeError, match="this session is generating already"):
        next(other.send("Two"))
    assert other.messages == []
    assert text(turn) == {"final": "bc"}
    assert len(chat.messages) == 2


def test_two_chats_share_a_session(package: Package, model: TinyModel, says: Script) -> None:
    session = Session(package)
    chats = [make(package, session=session) for _ in range(2)]
    for turn in ("One", "Two"):
        for chat in chats:
            says(ANSWER)
            list(chat.send(turn + " of many"))
            fresh = rendered(make_like(chat, chat.messages[:-2]))
            wanted = model.logits([*fresh, *encode(package, ANSWER)])[len(fresh) - 1 : -1]
            assert np.abs(np.stack(says.logits) - wanted).max() < 1e-3  # type: ignore[attr-defined]


def test_a_turn_that_fails_leaves_no_trace(package: Package, says: Script) -> None:
    chat = make(package, session=Session(package, max_length=400))
    says(ANSWER)
    list(chat.send("One"))
    before = list(chat.messages)
    with pytest.raises(UserError, match="the context holds 400"):
        list(chat.send("x" * 500))
    assert chat.messages == before
    says("<|channel|>final<|message|>half")
    with pytest.raises(Spoken):
        list(chat.send("Two"))
    assert chat.messages == before
    says(ANSWER)
    assert text(chat.send("Three"))["final"] == "Grüße!"


def test_a_model_that_speaks_for_the_user(package: Package, says: Script) -> None:
    chat = make(package)
    says("<|channel|>final<|message|>Yes.<|end|><|start|>user<|message|>Me<|end|><|return|>")
    list(chat.send("One"))
    assert chat.messages == [Message("user", "One"), Message("assistant", "Yes.", "final")]


def test_it_stops_where_the_package_does(package: Package, says: Script) -> None:
    assert make(package).options.stop_ids == package.stop_ids >= {257, 258, 264}
    assert make(package, stop_ids=frozenset({1})).options.stop_ids == {1}
    (own,) = package.tokenizer.encode("!")
    chat = make(package, stop_ids=package.stop_ids | {own})
    says("<|channel|>final<|message|>Hi!")
    assert text(chat.send("One")) == {"final": "Hi"}
    assert (chat.finish_reason, chat.messages[-1].content) == ("stop", "Hi")


def test_without_a_script(package: Package, model: TinyModel) -> None:
    """The model itself, greedy as its package says: random bytes, and still a conversation."""
    chat = make(package, max_new_tokens=25)
    for turn in range(3):
        prompt = rendered(make_like(chat, [*chat.messages, Message("user", f"Turn {turn}")]))
        list(chat.send(f"Turn {turn}"))
        reply = list(chat.session.tokens)[len(prompt) :]
        assert reply
        assert reply == model.choices(prompt, reply)
        assert chat.finish_reason in ("stop", "length", "tool_call")


PREAMBLE = "<|channel|>commentary<|message|>Let me check.<|end|><|start|>assistant"
SUNNY = "<|channel|>final<|message|>It is sunny.<|return|>"


def typed(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, *, show_analysis: bool = False, lines: str = "Hi\n"
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    chat_loop(chat, show_analysis)


@pytest.mark.parametrize(
    ("said", "show_analysis", "shown", "note"),
    [
        (PREAMBLE + SUNNY, False, "Let me check.\nIt is sunny.\n\n", ""),
        (
            THOUGHT + PREAMBLE + SUNNY,
            True,
            "[analysis] Ask.\n[commentary] Let me check.\n[final] It is sunny.\n\n",
            "",
        ),
        (
            PREAMBLE + CALL.removeprefix(THOUGHT),
            False,
            'Let me check.\n[call of functions.weather] {"city": "Ulm"}\n\n',
            "[the model called functions.weather, and nothing here runs tools]\n",
        ),
        (
            THOUGHT.replace("<|start|>assistant", "<|return|>"),
            False,
            "\n\n",
            "[the model ended without an answer: ask again, or in other words]\n",
        ),
    ],
    ids=["messages apart", "with analysis", "a call", "no answer"],
)
def test_the_terminal_shows_what_a_message_is(
    package: Package,
    says: Script,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
    show_analysis: bool,
    shown: str,
    note: str,
) -> None:
    says(said)
    typed(make(package), monkeypatch, show_analysis=show_analysis)
    assert capsys.readouterr() == (shown, note)


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ("<|channel|>analysis<|message|>Hm", "while the model was still thinking"),
        ("<|channel|>commentary to=functions.f<|message|>{}", "in the middle of a call"),
        ("<|channel|>final<|message|>abc", "short"),
    ],
)
def test_the_terminal_tells_where_a_reply_was_cut(
    package: Package,
    says: Script,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
    note: str,
) -> None:
    says(said)
    typed(make(package, max_new_tokens=len(encode(package, said))), monkeypatch)
    error = capsys.readouterr().err
    assert error.startswith(f"[cut {note}: raise --max-new-tokens")
    assert ("--reasoning low" in error) == ("thinking" in note)
    assert error.count("\n") == 1


def test_cancelling_before_the_first_token_is_not_lost(package: Package, says: Script) -> None:
    says("<|channel|>final<|message|>Yes.<|return|>")
    chat = make(package)
    turn = chat.send("hi")
    chat.cancel()
    assert list(turn) == []
    assert chat.finish_reason == "cancelled"
    assert [message.content for message in chat.messages] == ["hi"]
    chat.cancel()  # no turn is under way: the next one is whole
    assert text(chat.send("hi again"))["final"] == "Yes."
    dropped = chat.send("never asked for")
    del dropped
    assert not chat._unfinished
