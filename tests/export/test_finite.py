"""A weight that is no number is one line in every preset, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.experts import Mxfp4Experts
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import Options
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.rounding import Rounding
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.target import get_target
from tests.export.damage import UP, edit_tensors
from tests.export.test_checkpoint import Copy

pytestmark = pytest.mark.slow

NAN, INF = float("nan"), float("inf")
Q = "model.layers.1.self_attn.q_proj.weight"
PRESETS = ("fp32", "int8", "int4", "mxfp4")


def spoiled(name: str, place: tuple[int, ...], value: float) -> Callable[[Any], None]:
    def edit(found: dict[str, torch.Tensor]) -> None:
        found[name][place] = value

    return edit


def refusal(folder: Path, preset: str, **options: Any) -> str:
    chosen = Options(get_target("cpu"), Quantization.parse(preset, ()), **options)
    with pytest.raises(UserError) as caught:
        export(open_checkpoint(folder), chosen, folder.parent / "out" / "package", lambda *_: None)
    assert os.listdir(folder.parent) == [folder.name]
    message = str(caught.value)
    assert "\n" not in message and message.endswith("; get a sound checkpoint")
    return message


@pytest.mark.parametrize("preset", PRESETS)
def test_a_nan_names_tensor_and_row(preset: str, packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    edit_tensors(folder, spoiled(Q, (5, 3), NAN))
    assert f"{Q} holds NaN or infinity in row 5" in refusal(folder, preset)


@pytest.mark.parametrize("method", ["rtn", "search"])
def test_every_method(method: str, packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    edit_tensors(folder, spoiled(Q, (5, 3), INF))
    assert Q in refusal(folder, "int4", rounding=Rounding(method))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.embed_tokens.weight", (300, 0)),
        ("lm_head.weight", (511, 63)),
        ("model.norm.weight", (7,)),
        ("model.layers.0.self_attn.sinks", (1,)),
        ("model.layers.0.mlp.router.bias", (2,)),
        (f"{UP}_bias", (3, 100)),
        (f"{UP}", (2, 0, 0)),
    ],
)
def test_any_tensor(name: str, place: tuple[int, ...], dense: Path, copy: Copy) -> None:
    folder = copy(dense)
    edit_tensors(folder, spoiled(name, place, -INF))
    assert f"{name} holds NaN or infinity in row {place[0]}" in refusal(folder, "int8")


@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_scale_that_makes_no_number(preset: str, link: bool, packed: Path, copy: Copy) -> None:
    if link and preset != "mxfp4":
        return
    folder = copy(packed)
    edit_tensors(folder, spoiled(f"{UP}_scales", (2, 9, 1), 255))
    message = refusal(folder, preset, link=link)
    assert f"{UP}_scales has a scale of 255 in expert 2, row 9" in message


@pytest.mark.parametrize("code", [0x0, 0x5, 0x7, 0xE], ids=["0", "3", "6", "-4"])
@pytest.mark.parametrize("scale", [252, 253, 254])
def test_a_large_scale_is_refused_where_its_values_are_infinite(
    scale: int, code: int, packed: Path, copy: Copy
) -> None:
    folder = copy(packed)

    def edit(found: dict[str, torch.Tensor]) -> None:
        found[f"{UP}_scales"][2, 9, 1] = scale
        found[f"{UP}_blocks"][2, 9, 1] = code << 4 | code

    edit_tensors(folder, edit)
    magnitude = float(np.ldexp([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code & 7], scale - 127))
    experts = open_checkpoint(folder).expert_weight(0, "gate_up_proj")
    assert isinstance(experts, Mxfp4Experts)
    if magnitude <= float(np.finfo(np.float32).max):
        experts.check()
        assert experts.read(2)[1][9, 1] == scale
    else:
        for read in (experts.check, lambda: experts.read(2)):
            with pytest.raises(UserError, match=f"a scale of {scale} in expert 2, row 9"):
                read()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_the_largest_numbers_are_numbers(dtype: torch.dtype, dense: Path, copy: Copy) -> None:
    folder = copy(dense)

    def edit(found: dict[str, torch.Tensor]) -> None:
        found[Q] = found[Q].to(dtype)
        found[Q][0, :2] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min])

    edit_tensors(folder, edit)
    assert np.isfinite(open_checkpoint(folder).tensors[Q].read().astype(np.float64)).all()
    edit_tensors(folder, spoiled(Q, (1, 1), INF))
    with pytest.raises(UserError, match="in row 1"):
        open_checkpoint(folder).tensors[Q].read()
