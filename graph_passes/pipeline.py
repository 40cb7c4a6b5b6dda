"""The recipe: from the portable graph to a target's, read from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import (
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from gptoss_onnx.graph_passes.attention_spec import AttentionSpec, is_fused
from gptoss_onnx.graph_passes.decompose_attention import DecomposeAttention
from gptoss_onnx.graph_passes.fit_linears import BIAS, FitLinears
from gptoss_onnx.graph_passes.fuse_norms import RMS_NORM, SKIP_RMS_NORM
from gptoss_onnx.graph_passes.gather_experts import GatherExperts
from gptoss_onnx.graph_passes.half_precision import HalfPrecision
from gptoss_onnx.graph_passes.last_token_logits import LastTokenLogits
from gptoss_onnx.graph_passes.lower_attention import LowerAttention
from gptoss_onnx.graph_passes.lower_moe import LowerMoE
from gptoss_onnx.graph_passes.pin_opset import pin_opset
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.quantize_embedding import ZERO_POINTS, QuantizeEmbedding
from gptoss_onnx.graph_passes.quantize_kv import QuantizeKv
from gptoss_onnx.graph_passes.quantize_linears import QuantizeLinears
from gptoss_onnx.graph_passes.rounding import Rounding
from gptoss_onnx.graph_passes.route_experts import RouteExperts
from gptoss_onnx.graph_passes.scale_residual import ScaleResidual
from gptoss_onnx.graph_passes.share_tied import ShareTied, is_shared
from gptoss_onnx.graph_passes.step import PassError, Step, rules
from gptoss_onnx.graph_passes.unpack_embedding import unpack_embedding
from gptoss_onnx.graph_passes.verify_target import VerifyTarget
from gptoss_onnx.runtimes.target import Target


class Counts(Protocol):
    """What a recipe needs of a spec: how many of everything there must be."""

    @property
    def attention(self) -> Sequence[AttentionSpec]: ...
    @property
    def tie_word_embeddings(self) -> bool: ...


def recipe(
    spec: Counts,
    target: Target,
    quantization: Quantization,
    rounding: Rounding,
    *,
    kv_windows: Sequence[int | None],
    all_logits: bool,
    kv_max: Mapping[str, NDArray[np.float32]] | None = None,
    activations: str = "float32",
    cast_weights: bool = False,
    scale_residual: bool = False,
    unit_scale: bool = False,
    refuse_holes: bool = False,
) -> list[Step]:
    """The steps for `target`; each must rewrite exactly as often as the spec says.

    `kv_windows` are tokens that each layer's KV cache keeps (`attention_spec`). `kv_max` makes the
    cache int8: what its scales come from (`QuantizeKv`). With activations of 16 bits,
    `cast_weights` keeps float weights in float32, for graphs that share them. `scale_residual` is
    for float16, and for graphs that share weights with a graph in it. `refuse_holes` is for graphs
    that others than our runtimes feed (`LowerAttention`).
    """
    layers = len(spec.attention)
    quantization.check_layers(layers)
    steps = [
        Step("fuse RMSNorm", rules(RMS_NORM), 2 * layers + 1),
        # The first norm reads the embedding itself; each later one a residual sum.
        Step("fuse skip-RMSNorm", rules(SKIP_RMS_NORM), 2 * layers),
    ]
    if scale_residual:
        steps.append(Step("scale residual", ScaleResidual(), 2 * layers + 1))
    if is_fused(spec.attention, target):
        lengths = target.padded_batches
        attention = LowerAttention(
            quantization,
            kv_windows,
            rounding,
            lengths,
            refuse_holes=refuse_holes,
            unit_scale=unit_scale,
        )
        steps.append(Step("lower attention", attention, layers))
    else:
        decompose = DecomposeAttention(quantization, rounding, unit_scale)
        steps.append(Step("decompose attention", decompose, layers))
    stock = 0
    if target.experts in ("routed", "gathered"):  # float experts stay in one operator
        forms = (quantization.of("experts", layer) for layer in range(layers))
        stock = sum(form.kind == "int" for form in forms)
    if target.experts == "routed":
        steps.append(Step("route experts", RouteExperts(quantization, rounding), stock))
    if target.experts == "gathered":
        steps.append(Step("gather experts", GatherExperts(quantization, rounding), stock))
    level = target.has_attribute("com.microsoft", "QMoE", "accuracy_level")
    moe = LowerMoE(quantization, rounding, level, target.fp4_by_column)
    steps.append(Step("lower MoE", moe, layers - stock))
    if kv_max is not None:
        steps.append(Step("quantize KV", QuantizeKv(kv_max), layers))
    if not all_logits:  # needs the lengths that attention put into the graph
        last = LastTokenLogits(target.padded_batches)
        steps.append(Step("last token's logits", last, 1))
    # o_proj and router a layer, lm_head; last, since the steps above look for traced linears.
    steps.append(Step("quantize linears", QuantizeLinears(quantization, rounding), 2 * layers + 1))
    embedding = quantization.of("embedding")
    if embedding.kind == "int":
        gather = target.kernels.get(("com.microsoft", "GatherBlockQuantized"))
        zero_points = gather is not None and gather.min_inputs > ZERO_POINTS
        packed_embedding = QuantizeEmbedding(embedding, rounding, zero_points)
        steps.append(Step("quantize embedding", packed_embedding, 1))
        if not target.has_kernel("com.microsoft", "GatherBlockQuantized"):
            steps.append(Step("unpack embedding", unpack_embedding, 1))
    if spec.tie_word_embeddings and is_shared(quantization, rounding, target):
        steps.append(Step("share tied", ShareTied(quantization), 1))
    packed = target.kernels.get(("com.microsoft", "MatMulNBits"))
    if packed is not None and not target.reads_input("com.microsoft", "MatMulNBits", BIAS):
        linears = [quantization.of(g, n).kind for g in ("qkv", "o") for n in range(layers)]
        linears.append(quantization.of("lm_head").kind)
        fit = FitLinears(packed.inputs, packed.min_inputs)
        steps.append(Step("fit linears", fit, linears.count("int")))
    if activations != "float32":
        half = HalfPrecision(activations, cast_weights)
        steps.append(Step("half precision", half, 1))
    return steps


def lower(model: ir.Model, steps: list[Step], target: Target) -> ir.Model:
    """Run the recipe in place, clean up, and refuse what the target cannot run."""
    done: list[str] = []
    for step in steps:
        step.run(model, done)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    model.opset_imports["com.microsoft"] = 1
    RemoveUnusedOpsetsPass()(model)
    pin_opset(model, target.opset)
    VerifyTarget(target)(model)
    if model.functions:
        raise PassError(f"functions are left: {', '.join(str(f) for f in model.functions)}")
    return model
