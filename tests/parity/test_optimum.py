"""Packages with full-length KV in optimum.onnxruntime: the same greedy tokens as our runtime."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from optimum.onnxruntime import ORTModelForCausalLM

from tests.conftest import DemoPackage
from tests.parity.greedy import NEW_TOKENS, greedy, prompts

pytestmark = pytest.mark.slow


def load(folder: Path) -> ORTModelForCausalLM:
    return ORTModelForCausalLM.from_pretrained(folder, use_cache=True, file_name="model.onnx")


def optimum_greedy(model: ORTModelForCausalLM, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    return [int(token) for token in output[0, len(prompt) :]]


def test_rows_of_a_batch_are_padded_on_the_right(demo_package: DemoPackage) -> None:
    """transformers says to pad on the left, where the kernel would count the wrong tokens."""
    folder = demo_package("int4", full_kv=True)
    model, rows = load(folder), prompts(folder)[:2]
    short, long = sorted(rows, key=len)
    assert len(short) < len(long)
    gap = len(long) - len(short)

    def batch(padded: list[int], mask: list[int]) -> torch.Tensor:
        both = torch.tensor([padded, long]), torch.tensor([mask, [1] * len(long)])
        return model(both[0], attention_mask=both[1]).logits

    ones = [1] * len(short)
    right = batch(short + [0] * gap, ones + [0] * gap)
    alone = model(torch.tensor([short]), attention_mask=torch.tensor([ones])).logits
    assert torch.allclose(right[0, -1], alone[0, -1], atol=1e-3)
    with pytest.raises(InvalidArgument, match="takes rows padded on the right, not on the left"):
        batch([0] * gap + short, [0] * gap + ones)
    with pytest.raises(InvalidArgument, match="takes rows padded on the right"):  # a hole within
        batch([short[0], 0, *short[1:], *[0] * (gap - 1)], [1, 0, *ones[1:], *[0] * (gap - 1)])


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
