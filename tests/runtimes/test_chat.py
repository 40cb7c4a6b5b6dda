"""Conversations: streaming, history, the KV cache between turns."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import numpy as np
import pytest

from gptoss_onnx.runtimes import system_prompt
from gptoss_onnx.runtimes.chat import Chat
from gptoss_onnx.runtimes.harmony import Message, SystemPrompt
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session
from tests.runtimes.conftest import TinyModel
from tests.runtimes.scripted import ANSWER, SYSTEM, Script, encode, make, make_like, rendered, text


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
