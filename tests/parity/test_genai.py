"""Packages with full-length KV in onnxruntime-genai: the same greedy tokens as our runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_onnx.runtimes.package import Package
from tests.conftest import DemoPackage
from tests.installed import installed
from tests.parity.greedy import NEW_TOKENS, greedy, prompts

pytestmark = pytest.mark.slow

# It runs on the onnxruntime that is here.
GENAI = ("onnxruntime-genai", "0.18.0")


def genai_greedy(folder: Path, asked: list[list[int]]) -> list[list[int]]:
    jobs = json.dumps([[prompt, NEW_TOKENS] for prompt in asked])
    script = Path(__file__).with_name("genai_greedy.py")
    command = [sys.executable, str(script), str(folder), jobs]
    environment = {**os.environ, "PYTHONPATH": str(installed(*GENAI))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    replies: list[list[int]] = json.loads(done.stdout)
    return replies


def ours(folder: Path) -> list[list[int]]:
    stop = Package.open(folder).stop_ids
    replies = [greedy(folder, prompt) for prompt in prompts(folder)]
    return [[token for token in reply if token not in stop] for reply in replies]


@pytest.mark.parametrize("preset", ["fp32", "int4"])
def test_genai_generates_our_tokens(preset: str, demo_package: DemoPackage) -> None:
    folder = demo_package(preset, full_kv=True)
    assert genai_greedy(folder, prompts(folder)) == ours(folder)


def test_another_model_is_found_out(demo_package: DemoPackage) -> None:
    """An int4 package answers some prompt in other words than fp32."""
    folder = demo_package("int4", full_kv=True)
    assert genai_greedy(folder, prompts(folder)) != ours(demo_package("fp32", full_kv=True))


def test_a_stop_token_ends_a_reply_there_too(demo_package: DemoPackage, tmp_path: Path) -> None:
    folder = demo_package("fp32", full_kv=True)
    for file in folder.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    config = json.loads((folder / "genai_config.json").read_text())
    first = ours(folder)[0]
    config["model"]["eos_token_id"] = [first[3]]
    (tmp_path / "genai_config.json").unlink()
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    assert genai_greedy(tmp_path, prompts(folder))[0] == first[:3]
