"""The recipe: counts known from the spec, errors that name them, and every preset."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.graph_passes.attention_spec import kv_windows
from gptoss_onnx.graph_passes.pipeline import lower, recipe
from gptoss_onnx.graph_passes.quantization import PRESETS, Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH
from gptoss_onnx.graph_passes.step import PassError, Step
from gptoss_onnx.runtimes.target import Kernel, Target, get_target
from tests.graph_passes.conftest import LAYERS, nodes, ops

CPU, NODE, WEB = map(get_target, ("cpu", "node", "web"))
# What is the same whatever the preset: lengths once, norms and attention a layer.
COMMON = {
    "GroupQueryAttention": LAYERS,
    "SimplifiedLayerNormalization": 1,
    "SkipSimplifiedLayerNormalization": 2 * LAYERS,
    "Reshape": LAYERS,
    "Shape": 2,
    "Sub": 2,
    "Slice": 1,
    "ReduceSum": 2,
    "Cast": 3,
    "Squeeze": 1,
}
LAST = {"Sub": 3, "Max": 1, "Unsqueeze": 1, "GatherND": 1}
FLOAT = {"MoE": LAYERS, "Gather": 1, "MatMul": 3 * LAYERS + 1, "Add": 3 * LAYERS}
PACKED = {
    "QMoE": LAYERS,
    "GatherBlockQuantized": 1,
    "MatMulNBits": 2 * LAYERS + 1,
    "MatMul": LAYERS,
    "Add": LAYERS,
}


def steps(
    spec: GptOssSpec,
    preset: str = "fp32",
    *,
    target: Target = CPU,
    all_logits: bool = True,
) -> list[Step]:
    return recipe(
        spec,
        target,
        Quantization.parse(preset),
        SEARCH,
        kv_windows=kv_windows(spec.attention, target),
        all_logits=all_logits,
    )


@pytest.mark.parametrize("all_logits", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_lowers(
    model: ir.Model, spec: GptOssSpec, preset: str, all_logits: bool
) -> None:
    lower(model, steps(spec, preset, all_logits=all_logits), CPU)
    own = FLOAT if preset == "fp32" else PACKED
    assert ops(model) == COMMON | own | ({} if all_logits else LAST)
    assert not model.functions
    assert dict(model.opset_imports) == {"": 21, "com.microsoft": 1}
    assert [str(d) for d in model.graph.outputs[0].shape] == [
        "batch",
        "sequence" if all_logits else "1",
        "512",
    ]
    read = {v for node in model.graph for v in node.inputs}
    assert all(value in read for value in model.graph.initializers.values())


def test_counts_are_the_specs(spec: GptOssSpec) -> None:
    assert [(step.name, step.expected) for step in steps(spec, "int4", all_logits=False)] == [
        ("fuse RMSNorm", 7),
        ("fuse skip-RMSNorm", 6),
        ("lower attention", 3),
        ("lower MoE", 3),
        ("last token's logits", 1),
        ("quantize linears", 7),
        ("quantize embedding", 1),
    ]


def test_a_missing_norm_is_an_error(model: ir.Model, spec: GptOssSpec) -> None:
    axes = nodes(model, "ReduceMean")[-1].inputs[1]
    axes.const_value = ir.Tensor(np.array([1]), name=axes.name)
    with pytest.raises(PassError, match=r"^fuse RMSNorm: rewrote 6 of 7 places \(after nothing\)"):
        lower(model, steps(spec), CPU)


def test_a_missing_expert_layer_is_an_error(model: ir.Model, spec: GptOssSpec) -> None:
    moe = nodes(model, "MoE")[1]
    moe.outputs[0].replace_all_uses_with(moe.inputs[0])
    model.graph.remove(moe, safe=True)
    after = r"\(after fuse RMSNorm, fuse skip-RMSNorm, lower attention\)"
    with pytest.raises(PassError, match=f"^lower MoE: rewrote 2 of 3 places {after}"):
        lower(model, steps(spec), CPU)


def test_a_missing_head_is_an_error(model: ir.Model, spec: GptOssSpec) -> None:
    hidden = nodes(model, "MatMul")[-1].inputs[0]
    model.graph.outputs[0] = hidden
    product = nodes(model, "MatMul")[-1]
    model.graph.remove([product, product.inputs[1].producer()], safe=True)
    with pytest.raises(PassError, match=r"^quantize linears: rewrote 6 of 7 places"):
        lower(model, steps(spec), CPU)


def test_a_step_that_is_left_out_is_refused_by_the_target(
    model: ir.Model, spec: GptOssSpec
) -> None:
    wanted = [step for step in steps(spec) if step.name != "lower MoE"]
    with pytest.raises(PassError, match="MoE on cpu: no kernel"):
        lower(model, wanted, CPU)


def test_a_function_that_is_left_is_refused(model: ir.Model, spec: GptOssSpec) -> None:
    """A runtime inlines a function, out of sight of the target's table."""
    attributes = dict.fromkeys(("top_k", "swiglu_limit", "swiglu_alpha"))
    kernel = Kernel(frozenset({"FLOAT"}), attributes)
    target = dataclasses.replace(CPU, kernels={**CPU.kernels, ("ai.gptoss", "MoE"): kernel})
    wanted = [step for step in steps(spec) if step.name != "lower MoE"]
    with pytest.raises(PassError, match=r"functions are left: .*MoE"):
        lower(model, wanted, target)


EXPERTS = 4


@pytest.mark.parametrize("preset", ["fp32", "int8", "int4"])
def test_a_target_of_1_30_gets_nothing_newer(
    model: ir.Model, spec: GptOssSpec, preset: str
) -> None:
    lower(model, steps(spec, preset, target=NODE), NODE)
    assert {len(node.inputs) for node in nodes(model, "GroupQueryAttention")} == {12}
    found = ops(model)
    if preset == "fp32":
        assert (found["MoE"], found["If"]) == (LAYERS, 0)
    else:
        assert (found["QMoE"], found["If"]) == (0, LAYERS * EXPERTS)
    assert found["Cast"] == COMMON["Cast"] - 1 + (LAYERS if found["If"] else 0)  # no query_seqlens


def test_experts_stay_fused_where_that_is_fast(model: ir.Model, spec: GptOssSpec) -> None:
    lower(model, steps(spec, "int4", target=WEB), WEB)
    found = nodes(model, "QMoE")
    assert len(found) == LAYERS
    assert all("accuracy_level" not in node.attributes for node in found)
    assert {len(node.inputs) for node in nodes(model, "GroupQueryAttention")} == {12}


def test_counts_of_routed_layers_are_the_formats(spec: GptOssSpec) -> None:
    quantization = Quantization.parse("int4", ["layers.1.experts=fp32"])
    made = recipe(spec, NODE, quantization, SEARCH, kv_windows=(None,) * LAYERS, all_logits=False)
    wanted = [(s.name, s.expected) for s in made if "experts" in s.name or "MoE" in s.name]
    assert wanted == [("route experts", 2), ("lower MoE", 1)]
