"""Formats and presets from text, and what is wrong with the others."""

from __future__ import annotations

import pytest

from gptoss_onnx.graph_passes.quantization import (
    FP32,
    GROUPS,
    INT4,
    INT8,
    MXFP4,
    PRESETS,
    Format,
    Quantization,
)
from gptoss_onnx.runtimes.errors import UserError


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("fp32", FP32),
        ("mxfp4", MXFP4),
        ("int8", INT8),
        ("int4", INT4),
        ("int4:128", Format("int", 4, 128)),
        ("int8:16", Format("int", 8, 16)),
    ],
)
def test_formats(text: str, form: Format) -> None:
    assert Format.parse(text) == form
    assert Format.parse(str(form)) == form


@pytest.mark.parametrize(
    "text", ["", "int2", "int4:", "int4:48", "int4:32 ", "INT4", "mxfp4:32", "fp16", "int4:32:1"]
)
def test_texts_that_are_no_format(text: str) -> None:
    with pytest.raises(UserError, match="is not a format; use fp32") as caught:
        Format.parse(text)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


def test_presets() -> None:
    assert {name: preset.name for name, preset in PRESETS.items()} == {n: n for n in PRESETS}
    assert Quantization.parse("mxfp4").describe() == {
        "embedding": "int8:64",
        "qkv": "int8:64",
        "o": "int8:64",
        "experts": "mxfp4",
        "lm_head": "int8:64",
    }
    assert Quantization.parse("int4").describe() == dict.fromkeys(GROUPS, "int4:32") | {
        "embedding": "int8:64"
    }


def test_changes_are_of_one_group_each() -> None:
    chosen = Quantization.parse("int4", ["lm_head=int8:64", "experts=mxfp4"])
    assert chosen.name == "int4"
    assert chosen.describe() == PRESETS["int4"].describe() | {
        "lm_head": "int8:64",
        "experts": "mxfp4",
    }
    assert Quantization.parse("int4") == PRESETS["int4"]


@pytest.mark.parametrize(
    ("preset", "change", "why"),
    [
        ("int2", "qkv=int4", "no preset 'int2'; there are fp32, int8, int4, mxfp4"),
        ("int4", "router=int4", "write group=format, group embedding, qkv, o, experts, lm_head"),
        ("int4", "layers.1.lm_head=int4", "write group=format"),
        ("int4", "layers.x.o=int4", "write group=format"),
        ("int4", "layers.1.o=mxfp4", "only experts can be mxfp4"),
        ("int4", "name=int4", "write group=format"),
        ("int4", "qkv", "'' is not a format"),
        ("int4", "qkv=", "'' is not a format"),
        ("int4", "qkv=int3", "'int3' is not a format"),
        ("int4", "lm_head=mxfp4", "only experts can be mxfp4"),
    ],
)
def test_changes_that_are_none(preset: str, change: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        Quantization.parse(preset, [change])


def test_what_a_manifest_says_was_done() -> None:
    """With a preset that this version does not know, a recipe that names every group will do."""
    whole = PRESETS["int8"].describe() | {"layers.1.qkv": "int4:64"}
    for preset in ("int4", "int3"):
        assert Quantization.recorded(preset, whole, "x").describe() == whole
    assert Quantization.recorded("int4", {"qkv": "fp32"}, "x").of("experts") == INT4
    del whole["lm_head"]
    with pytest.raises(UserError, match=r"x: quant is 'int3', .* what lm_head is in"):
        Quantization.recorded("int3", whole, "x")
    with pytest.raises(UserError, match="x: recipe has 'int3' is not a format"):
        Quantization.recorded("int4", {"qkv": "int3"}, "x")


def test_a_layer_may_differ_from_its_group() -> None:
    chosen = Quantization.parse("int4", ["experts=int8", "layers.3.experts=int4:16"])
    assert [str(chosen.of("experts", n)) for n in (2, 3)] == ["int8:32", "int4:16"]
    assert str(chosen.of("o", 3)) == "int4:32"
    assert PRESETS["int4"].changed(chosen.describe()) == chosen
    chosen.check_layers(4)
    with pytest.raises(UserError, match=r"layers\.3\.experts: the model's layers are 0 to 2"):
        chosen.check_layers(3)
