"""`gptoss chat` in a terminal: what a message is, and where a reply was cut."""

from __future__ import annotations

import io

import pytest

from gptoss_onnx.runtimes.chat import Chat
from gptoss_onnx.runtimes.console import chat_loop
from gptoss_onnx.runtimes.package import Package
from tests.runtimes.scripted import CALL, THOUGHT, Script, encode, make

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
