"""Prompts answered without a conversation, one or several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gptoss_onnx.runtimes.generation import Options, generate_batch
from gptoss_onnx.runtimes.harmony import Message, StreamParser
from gptoss_onnx.runtimes.package import Package


def answer(
    package: Package, prompts: Sequence[str], *, raw: bool = False, **options: Any
) -> list[dict[str, Any]]:
    """A dict a prompt: text, finish_reason, usage, and without `raw` the text of each channel.

    `raw` continues the prompt as it stands; else it is a user's message and the answer is the
    final channel's text. `options` are those of `generation.Options`.
    """
    if raw:
        ids = [package.tokenizer.encode(prompt) for prompt in prompts]
    else:
        ids = [package.harmony.render([Message("user", prompt)]) for prompt in prompts]
    answers = []
    for result in generate_batch(package, ids, Options(**options)):
        texts = (
            {"text": package.tokenizer.decode(result.ids)}
            if raw
            else _by_channel(package, result.ids)
        )
        answers.append(
            {**texts, "finish_reason": result.finish_reason, "usage": asdict(result.usage)}
        )
    return answers


def _by_channel(package: Package, ids: Sequence[int]) -> dict[str, Any]:
    parser = StreamParser(package.tokenizer)
    channels: dict[str, str] = {}
    for event in (*(e for token in ids for e in parser.feed(token)), *parser.finish()):
        channels[event.channel] = channels.get(event.channel, "") + event.text
    return {"text": channels.get("final", ""), "channels": channels}
