"""Greedy answers of a package as JSON, to compare processors and releases of ONNX Runtime by.

    python -m tests.targets.answers PACKAGE QUESTIONS.jsonl COUNT

Needs the runtime's own dependencies only, so it runs wherever a package does.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import onnxruntime

from gptoss_onnx.runtimes.generation import Options, generate
from gptoss_onnx.runtimes.harmony import Message, SystemPrompt
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.session import Session

MOST_TOKENS = 160
SYSTEM = SystemPrompt(date="2026-01-01")


def answers(package: Package, questions: Path, count: int) -> dict[str, Any]:
    """Ids of the replies to `count` questions, spread evenly, each by itself; then to the first.

    That one ends a conversation of the others, so that its prompt is longer than the window.
    """
    lines = questions.read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line)["messages"] for line in lines[:: len(lines) // count][:count]]
    alone = [[Message("user", turn[0]["content"])] for turn in turns]
    talk = [Message(m["role"], m["content"]) for turn in turns[1:] for m in turn]
    options = Options(MOST_TOKENS, Sampling(temperature=0), chunk=100)
    replies = []
    for messages in [*alone, [*talk, *alone[0]]]:
        prompt = package.harmony.render(messages, system=SYSTEM)
        ids = list(generate(Session(package), prompt, options))
        replies.append({"question": messages[-1].content, "prompt": prompt, "ids": ids})
        print(len(prompt), "+", len(ids), messages[-1].content, file=sys.stderr, flush=True)
    window = max(layer.window or 0 for layer in package.manifest.kv.layers)
    assert len(prompt) > window + 10, "too few questions to go beyond the window"
    return {
        "onnxruntime": onnxruntime.__version__,
        "machine": platform.machine(),
        "replies": replies,
    }


if __name__ == "__main__":
    folder, questions, count = sys.argv[1:]
    found = answers(Package.open(folder, threads=1), Path(questions), int(count))
    print(json.dumps(found, ensure_ascii=False))
