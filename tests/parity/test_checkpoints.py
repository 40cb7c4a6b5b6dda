"""Checkpoints as people have them, as transformers loads them: tied embeddings, no word of RoPE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from gptoss_onnx.export.checkpoint import EMBEDDING, LM_HEAD
from gptoss_onnx.export.plan import Options, plan, summary
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.target import get_target
from tests.export.damage import edit_json, edit_tensors
from tests.parity.reference import SHORT, Subject, altered, subject
from tests.parity.test_parity import CLEAR

pytestmark = pytest.mark.slow

ALL_FLOAT = ("embedding=fp32", "qkv=fp32", "o=fp32", "lm_head=fp32")
PRESETS = ("fp32", "int8", "int4", "mxfp4")
ALIKE = {"fp32": True, "int8": True, "int4": False, "mxfp4": True}


def tied(folder: Path, head: str) -> Subject:
    """Every expert is chosen, so that no rounding changes the choice."""
    made = subject(folder, SHORT, {"tie_word_embeddings": True}, experts=2, experts_per_token=2)

    def edit(found: dict[str, Any]) -> None:
        if head == "absent":
            del found[LM_HEAD]
        else:
            found[LM_HEAD] = found[EMBEDDING].clone()

    edit_tensors(folder, edit)
    return made


@pytest.fixture(scope="module")
def absent(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Without lm_head.weight, as transformers saves it."""
    return tied(tmp_path_factory.mktemp("tied") / "checkpoint", "absent")


@pytest.fixture(scope="module")
def redundant(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """With a lm_head.weight that is the embedding, as llama.cpp#12567 has it."""
    return tied(tmp_path_factory.mktemp("tied") / "checkpoint", "redundant")


@pytest.mark.parametrize("transformers", [4, 5])
@pytest.mark.parametrize("kind", ["absent", "redundant"])
def test_tied_embeddings_are_the_reference(
    kind: str, transformers: int, request: pytest.FixtureRequest
) -> None:
    made: Subject = request.getfixturevalue(kind)
    one = made.against(transformers)
    assert one.error(one.portable) <= one.tolerance
    assert one.error(one.package("fp32"), one.package_windows) <= one.tolerance
    mxfp4 = one.package("mxfp4", *ALL_FLOAT)
    assert one.error(mxfp4, one.package_windows) <= one.tolerance


def test_canary_an_lm_head_of_its_own(absent: Subject, tmp_path: Path) -> None:
    def change(model: ir.Model) -> None:
        value = model.graph.initializers[LM_HEAD]
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy()[::-1].copy(), name=LM_HEAD)

    graph = altered(absent, tmp_path / "canary.onnx", change)
    assert absent.error(graph) > CLEAR * absent.tolerance


def weight_files(package: Path) -> int:
    return sum(file.stat().st_size for file in package.parent.glob("model.onnx.data*"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_tied_weight_is_written_once_where_its_formats_agree(
    absent: Subject, preset: str
) -> None:
    """Against the same package of a checkpoint whose lm_head is its own."""
    options = Options(get_target("cpu"), Quantization.parse(preset, ()))
    made = plan(absent.checkpoint, options)
    names = [str(tensor.name) for tensor in made.tensors]
    heads = [name for name in names if "lm_head" in name]
    tables = [name for name in names if "embed_tokens" in name]
    form = options.quantization.of("embedding")
    count = 1 if form.kind == "float" else 2  # codes and scales
    assert len(heads) + len(tables) == (count if ALIKE[preset] else 2 * count)
    package = absent.package(preset, all_logits=False)
    assert summary(made)["written_bytes"] <= weight_files(package) + (1 << 16)
    assert weight_files(package) - summary(made)["written_bytes"] < 1 << 20  # padding


@pytest.mark.parametrize("preset", ["int8", "mxfp4"])
def test_sharing_changes_no_number(
    absent: Subject, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = absent.error(absent.package(preset), absent.package_windows)
    monkeypatch.setattr("gptoss_onnx.graph_passes.pipeline.is_shared", lambda *_: False)
    apart = absent.package(preset, "lm_head=int8:64")  # the preset's own, in a folder of its own
    assert weight_files(apart) > weight_files(absent.package(preset))
    assert absent.error(apart, absent.package_windows) == shared


@pytest.mark.parametrize("target", ["web", "directml", "cuda", "android"])
def test_every_target_takes_tied_embeddings(absent: Subject, target: str) -> None:
    for preset in get_target(target).presets:
        plan(absent.checkpoint, Options(get_target(target), Quantization.parse(preset, ())))


@pytest.mark.parametrize("transformers", [4, 5])
def test_a_config_without_a_word_of_rope(transformers: int, tmp_path: Path) -> None:
    made = subject(tmp_path / "checkpoint", SHORT, experts=2, experts_per_token=2)

    def edit(content: dict[str, Any]) -> None:
        del content["rope_scaling"], content["rope_theta"]

    edit_json(made.folder / "config.json", edit)
    one = made.against(transformers)
    assert one.spec.rope.factor == 32 and one.spec.rope.theta == 150000
    assert one.error(one.portable) <= one.tolerance
