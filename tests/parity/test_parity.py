"""The portable graph and packages against transformers: chunked, padded, past the window."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.blockwise import dequantize_blocks
from tests.parity.conftest import GEOMETRIES, Maker
from tests.parity.reference import Float, Subject, altered

Change = Callable[[ir.Model, Subject], None]
FLOAT_BUT_EXPERTS = ("embedding=fp32", "qkv=fp32", "o=fp32", "lm_head=fp32")
CLEAR = 20  # a canary's error is at least so many tolerances


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_portable_graph_is_the_reference(make: Maker, name: str) -> None:
    subject = make(name)
    assert subject.error(subject.portable) <= subject.tolerance


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_fp32_package_is_the_reference(make: Maker, name: str) -> None:
    subject = make(name)
    error = subject.error(subject.package("fp32"), subject.package_windows)
    assert error <= subject.tolerance


def test_a_packages_last_logits_are_those_of_each_rows_last_token(make: Maker) -> None:
    subject = make("eight experts")
    error = subject.error(subject.package("fp32", all_logits=False), subject.package_windows)
    assert error <= subject.tolerance


def test_mxfp4_experts_are_the_dequantized_reference(small: Subject) -> None:
    error = small.error(small.package("mxfp4", *FLOAT_BUT_EXPERTS), small.package_windows)
    assert error <= small.tolerance


def test_int8_experts_decode_to_the_checkpoints_values_exactly(small: Subject) -> None:
    stored = ir.load(small.package("int8", *FLOAT_BUT_EXPERTS)).graph.initializers
    for layer in range(small.spec.num_layers):
        for which in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{which}"
            codes, scales = (
                stored[f"{name}_{part}"].const_value.numpy() for part in ("int8", "scales")
            )
            source = small.checkpoint.expert_weight(layer, which)
            for expert in range(small.spec.num_experts):
                expected = mxfp4.decode(*source.read(expert))
                values = dequantize_blocks(codes[expert], scales[expert], 8, 32, expected.shape[-1])
                np.testing.assert_array_equal(values, expected)


def int8_tolerance(subject: Subject) -> float:
    """Share of the largest logit that int8 activations cost.

    Activations are rounded in blocks of 32 to steps of max / 127: an error of max / (127 sqrt(12)),
    where the largest of 32 Gaussian values is about 2.1 deviations. A linear keeps that share. It
    enters an expert's output three times, through gate, up and down, independently.
    """
    return math.sqrt(3 * subject.spec.num_layers) * 2.1 / (127 * math.sqrt(12))


def test_int8_experts_differ_by_the_rounding_of_activations(small: Subject) -> None:
    error = small.error(small.package("int8", *FLOAT_BUT_EXPERTS), small.package_windows)
    assert error <= int8_tolerance(small)


def test_int4_experts_fail_the_comparison_of_int8_experts(small: Subject) -> None:
    error = small.error(small.package("int4", *FLOAT_BUT_EXPERTS), small.package_windows)
    assert error > 2 * int8_tolerance(small)  # steps 16 times as wide, of weights alone


def weight(name: str, function: Callable[[Float], Float]) -> Change:
    """A weight of the first layer, or of the model, by what `function` makes of it."""
    full = name if name.startswith("model") else f"model.layers.0.{name}"

    def change(model: ir.Model, _: Subject) -> None:
        value = model.graph.initializers[full]
        new = np.ascontiguousarray(function(value.const_value.numpy()))
        assert new.shape == tuple(value.shape.numpy())
        value.const_value = ir.Tensor(new, name=full)

    return change


def flip_truncate(model: ir.Model, subject: Subject) -> None:
    spec = subject.spec
    rope = dataclasses.replace(spec.rope, truncate=not spec.rope.truncate)
    tables = rope.tables(spec.head_dim, spec.max_position_embeddings)
    for name, table in zip(("cos_cache", "sin_cache"), tables, strict=True):
        model.graph.initializers[name].const_value = ir.Tensor(table, name=name)


def attribute(name: str, value: int) -> Change:
    """An attribute of the first sliding layer's attention."""

    def change(model: ir.Model, _: Subject) -> None:
        node = next(
            node
            for node in model.graph
            if node.op_type == "WindowedAttention" and node.attributes.get_int("window")
        )
        assert node.attributes.get_int(name) != value
        node.attributes[name] = ir.AttrInt64(name, value)

    return change


def both(*changes: Change) -> Change:
    def change(model: ir.Model, subject: Subject) -> None:
        for one in changes:
            one(model, subject)

    return change


def swapped_pairs(rows: Float) -> Float:
    """Gate and up rows of [E, 2I, ...] the other way round."""
    return rows.reshape(len(rows), -1, 2, *rows.shape[2:])[:, :, ::-1].reshape(rows.shape)


CANARIES: dict[str, Change] = {
    "YaRN truncate flipped": flip_truncate,
    "window dropped": attribute("window", 0),
    "window one short": attribute("window", 63),
    "sinks zeroed": weight("self_attn.sinks", np.zeros_like),
    **{
        f"{name} bias dropped": weight(f"{where}bias", np.zeros_like)
        for name, where in {
            **{x: f"self_attn.{x}_proj." for x in "qkvo"},
            "router": "mlp.router.",
            "gate_up": "mlp.experts.gate_up_proj_",
            "down": "mlp.experts.down_proj_",
        }.items()
    },
    "gate and up swapped": both(
        weight("mlp.experts.gate_up_proj", swapped_pairs),
        weight("mlp.experts.gate_up_proj_bias", swapped_pairs),
    ),
    "down transposed": weight("mlp.experts.down_proj", lambda w: w.transpose(0, 2, 1)),
    "experts swapped": weight("mlp.experts.down_proj", lambda w: np.roll(w, 1, axis=0)),
    "input norm dropped": weight("input_layernorm.weight", np.ones_like),
    "post-attention norm dropped": weight("post_attention_layernorm.weight", np.ones_like),
    "last norm dropped": weight("model.norm.weight", np.ones_like),
}


def test_a_graph_that_is_loaded_and_saved_unchanged_passes(
    published: Subject, tmp_path: Path
) -> None:
    graph = altered(published, tmp_path / "same.onnx", lambda model: None)
    assert published.error(graph) <= published.tolerance


@pytest.mark.parametrize("name", CANARIES)
def test_canary(published: Subject, tmp_path: Path, name: str) -> None:
    graph = altered(
        published, tmp_path / "canary.onnx", lambda model: CANARIES[name](model, published)
    )
    assert published.error(graph) > CLEAR * published.tolerance


def test_global_tokens_are_the_mask_made_by_hand(with_globals: Subject) -> None:
    subject = with_globals
    assert subject.error(subject.portable) <= subject.tolerance
    error = subject.error(subject.package("fp32"), subject.package_windows)
    assert error <= subject.tolerance


def test_canary_global_tokens_dropped(with_globals: Subject, tmp_path: Path) -> None:
    graph = altered(
        with_globals,
        tmp_path / "canary.onnx",
        lambda model: attribute("num_global_tokens", 0)(model, with_globals),
    )
    assert with_globals.error(graph) > CLEAR * with_globals.tolerance
