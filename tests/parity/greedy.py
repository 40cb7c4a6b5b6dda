"""Three prompts and our runtime's greedy replies, which other runtimes are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptoss_onnx.runtimes.generation import Options, generate
from gptoss_onnx.runtimes.harmony import Message
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.session import Session

NEW_TOKENS = 40
QUESTIONS = (
    "What does os.path.join do?",
    "What does os.path.basename do?",
    # Longer than the sliding window of 128 tokens.
    "os.path.join(path, *paths) os.path.basename(path) " * 10 + "What does os.path.dirname do?",
)


def prompts(folder: Path) -> list[list[int]]:
    """Ids of the rendered questions."""
    package = Package.open(folder)
    window = max(layer.window or 0 for layer in package.manifest.kv.layers)
    found = [package.harmony.render([Message("user", question)]) for question in QUESTIONS]
    assert len(found[-1]) > window + 20
    return found


def greedy(folder: Path, prompt: Sequence[int]) -> list[int]:
    """New tokens, a stop token included."""
    options = Options(NEW_TOKENS, Sampling(temperature=0))
    return list(generate(Session(Package.open(folder)), prompt, options))
