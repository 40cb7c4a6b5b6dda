"""Ids of tool calls, which say how the model wrote the call.

A client sends a call back as name and arguments. Rendered as the model wrote it, the conversation
is what the KV cache holds, and nothing of it is computed again; so the id carries the few choices
there are. An id that is not ours stands for the form that the format's description has.
"""

from __future__ import annotations

import re
import secrets

from gptoss_onnx.runtimes.harmony import CONSTRAIN, FUNCTIONS, Message

_TYPES = (f"{CONSTRAIN}json", None, "json")
_OURS = re.compile(r"call_[0-9a-f]{22}_([0-9a-f])([0-2])")
_IN_ROLE, _ANALYSIS, _BARE = 1, 2, 4


def new_call_id(
    recipient: str, channel: str | None, content_type: str | None, in_role: bool = False
) -> str:
    """For a call that the model wrote so."""
    form = _IN_ROLE * in_role + _ANALYSIS * (channel == "analysis")
    form += _BARE * (not recipient.startswith(FUNCTIONS))
    kind = _TYPES.index(content_type) if content_type in _TYPES else 0
    return f"call_{secrets.token_hex(11)}_{form:x}{kind}"


def call_message(call_id: str, name: str, arguments: str) -> Message:
    """The call as the model wrote it, `name` as the client knows it."""
    ours = _OURS.fullmatch(call_id)
    form, kind = (int(ours[1], 16), int(ours[2])) if ours else (0, 0)
    return Message(
        "assistant",
        arguments,
        "analysis" if form & _ANALYSIS else "commentary",
        name if form & _BARE else FUNCTIONS + name,
        _TYPES[kind],
        bool(form & _IN_ROLE),
    )


def result_message(call: Message, text: str) -> Message:
    """What the tool answered to `call`."""
    return Message(str(call.recipient), text, call.channel, "assistant")
