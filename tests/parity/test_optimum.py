"""Packages with full-length KV in optimum.onnxruntime: the same greedy tokens as our runtime."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from tests.conftest import DemoPackage
from tests.parity.greedy import NEW_TOKENS, greedy, prompts


def load(folder: Path) -> ORTModelForCausalLM:
    return ORTModelForCausalLM.from_pretrained(folder, use_cache=True, file_name="model.onnx")


def optimum_greedy(model: ORTModelForCausalLM, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    return [int(token) for token in output[0, len(prompt) :]]


@pytest.mark.parametrize("preset", ["fp32", "int4"])
def test_optimum_generates_our_tokens(preset: str, demo_package: DemoPackage) -> None:
    folder = demo_package(preset, full_kv=True)
    model = load(folder)
    for prompt in prompts(folder):
        assert optimum_greedy(model, prompt) == greedy(folder, prompt)


def test_another_window_is_found_out(demo_package: DemoPackage, tmp_path: Path) -> None:
    """The comparison sees the far end of a prompt that is longer than the window."""
    folder = demo_package("fp32", full_kv=True)
    for file in folder.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    model = ir.load(folder / "model.onnx")
    for node in model.graph:
        if "local_window_size" in node.attributes:
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", 8)
    (tmp_path / "model.onnx").unlink()
    ir.save(model, tmp_path / "model.onnx")
    long = max(prompts(folder), key=len)
    assert optimum_greedy(load(tmp_path), long) != greedy(folder, long)
