"""Turns that end early: cancelled, abandoned, out of length, failed."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from gptoss_onnx.runtimes.chat import Chat
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Message
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.stream_parser import Event
from tests.runtimes.conftest import TinyModel
from tests.runtimes.scripted import (
    ANSWER,
    CALL,
    TOOL,
    Script,
    Spoken,
    encode,
    make,
    make_like,
    rendered,
    text,
)


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
