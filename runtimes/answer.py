"""Prompts answered without a conversation, one or several at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Options, Result
from gptoss_onnx.runtimes.harmony import Message
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import read_reply
from gptoss_onnx.runtimes.scheduler import generate_batch
from gptoss_onnx.runtimes.stream_parser import kind_of


def answer(
    package: Package, prompts: Sequence[str], *, raw: bool = False, **options: Any
) -> list[dict[str, Any]]:
    """A dict a prompt: text, finish_reason, usage. UserError where `prompts` is one text alone.

    `raw` continues the prompt as it stands; else it is a user's message and the answer is the final
    channel's text. Then there are also `messages`, all that the model wrote as a list of kind and
    text, and `cut_in`, the kind of message in which the reply was cut, null when it is complete.
    `options` are those of `generation.Options`.
    """
    if isinstance(prompts, str):  # a sequence of texts too, of a character each
        raise UserError("prompts is one text: give a list of prompts")
    if raw:
        ids = [package.tokenizer.encode(prompt) for prompt in prompts]
    else:
        ids = [package.harmony.render([Message("user", prompt)]) for prompt in prompts]
    answers = []
    chosen = Options(**options)
    stop_ids = chosen.stop_ids or package.stop_ids
    for result in generate_batch(package, ids, chosen):
        said = (
            {"text": package.tokenizer.decode(result.ids), "finish_reason": result.finish_reason}
            if raw
            else _reply(package, result, stop_ids)
        )
        answers.append({**said, "usage": asdict(result.usage)})
    return answers


def _reply(package: Package, result: Result, stop_ids: Collection[int]) -> dict[str, Any]:
    reply = read_reply(package.tokenizer, result.ids, result.finish_reason, stop_ids=stop_ids)
    return {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "cut_in": reply.cut_in,
        "messages": [
            {"kind": kind_of(m), "text": m.content}
            | ({"recipient": m.recipient} if m.is_call else {})
            for m in reply.said
        ],
    }
