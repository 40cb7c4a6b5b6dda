"""Every target's graphs against the portable graph: chunks, single tokens, past the window.

The oracle computes with the very weights that packages hold, decoded, so what is compared is the
lowering and not the rounding of weights. Each graph runs on ONNX Runtime's CPU provider, which
casts where it lacks a kernel of 16 bits. Activations are not rounded to 8 bits (accuracy_level is
taken off): how far that is off is no question of right or wrong here, and evaluations measure it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from gptoss_onnx.evaluation.graph_runner import GraphRunner, open_model
from gptoss_onnx.evaluation.sensitivity import PackageWeights
from gptoss_onnx.evaluation.units import units
from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.exporter import export, export_portable
from gptoss_onnx.export.plan import GRAPH, Options
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.manifest import Manifest, graph_files
from gptoss_onnx.runtimes.target import Target, load_targets
from tests.targets.cpu_form import for_cpu

pytestmark = pytest.mark.slow

LAYERS, WIDEST = 3, 128  # the widest dot product: 4 heads of 32
TOKENS, ENDS = 61, (20, 21, 37)  # the window is 16; then single tokens
IDS = np.random.default_rng(5).integers(0, 512, (1, TOKENS))
EPS = {
    "float32": float(np.finfo(np.float32).eps),
    "float16": float(np.finfo(np.float16).eps),
    "bfloat16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps),
}
# int4 blocks of the tiny model's 64 columns: embedding and experts too.
CHANGES = {"int4": ["embedding=int8:32"]}


def tables() -> Iterator[Target]:
    for target in load_targets().values():
        yield from (target, *target.older)


CASES = [
    pytest.param(target, preset, activations, id=f"{target.name}-{target.min_runtime}-{preset}-"
                 f"{activations}")
    for target in tables()
    for preset in target.presets
    for activations in target.activations
]  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """A random checkpoint, its portable graph, and packages of it."""

    folder: Path

    @property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.folder / "tiny")

    def package(self, target: Target, preset: str, activations: str) -> Path:
        output = self.folder / f"{target.name}-{target.min_runtime}-{preset}-{activations}"
        if not output.exists():
            quantization = Quantization.parse(preset, CHANGES.get(preset, ()))
            options = Options(
                target, quantization, activations=activations, all_logits=True, kv="float"
            )
            export(self.checkpoint, options, output, lambda *_: None)
        return output

    @cache  # noqa: B019  lives as long as the tests do
    def oracle(self, preset: str, damage: Callable[[ir.Model], None] | None = None) -> np.ndarray:
        """Logits [T, V] of the portable graph with the weights that CPU packages hold."""
        model = self._portable(preset)
        if damage is not None:
            damage(model)
        return fed(GraphRunner(open_model(model, self.folder / "portable", threads=1)))

    @cache  # noqa: B019
    def routing_gap(self, preset: str) -> np.ndarray:
        """How far each token [T] is from other experts in some layer: the least distance of a
        chosen expert's logit to one that was not, as a share of the router's largest."""
        model = self._portable(preset)
        layers = [node for node in model.graph if node.op_type == "MoE"]
        model.graph.outputs.extend(node.inputs[1] for node in layers)
        runner = GraphRunner(open_model(model, self.folder / "portable", threads=1))
        runner.feed(IDS)
        chosen = layers[0].attributes.get_int("top_k")
        logits = np.sort(np.stack([router.reshape(TOKENS, -1) for router in runner.extra]))
        gaps = logits[..., -chosen] - logits[..., -chosen - 1]
        return (gaps / np.abs(logits).max(-1)).min(0)

    def _portable(self, preset: str) -> ir.Model:
        model = ir.load(self.folder / "portable" / GRAPH)
        package = self.package(load_targets()["cpu"], preset, "float32") / GRAPH
        held = PackageWeights(package, self.folder / "portable" / GRAPH)
        quantization = Quantization.parse(preset, CHANGES.get(preset, ()))
        for unit in units(LAYERS):
            form = quantization.of(unit.group, unit.layer)
            for name in unit.weights if form.kind != "float" else ():
                value = model.graph.initializers[name]
                rows = np.concatenate(list(held.stream(name, form)()))
                value.const_value = ir.Tensor(rows.reshape(value.shape.numpy()), name=name)
        return model


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("numerics")
    synthesize(folder / "tiny", geometry="tiny", layers=LAYERS)
    export_portable(open_checkpoint(folder / "tiny"), folder / "portable")
    return Lab(folder)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """As many experts as gpt-oss-120b has, and as many of them a token."""
    folder = tmp_path_factory.mktemp("many")
    synthesize(folder / "tiny", geometry="tiny", layers=LAYERS, experts=128, experts_per_token=4)
    export_portable(open_checkpoint(folder / "tiny"), folder / "portable")
    return Lab(folder)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A checkpoint whose residual stream passes float16's largest number, as gpt-oss-120b's does:
    all that is added to it is 2^14 times as large, and the norms make the same of it."""
    folder = tmp_path_factory.mktemp("loud")
    synthesize(folder / "tiny", geometry="tiny", layers=LAYERS)
    (file,) = (folder / "tiny").glob("*.safetensors")
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("down_proj_scales"):
            tensors[name] = tensor + np.uint8(14)
        elif "embed_tokens" in name or "o_proj" in name or name.endswith("down_proj_bias"):
            tensors[name] = (tensor.astype(np.float32) * 2**14).astype(tensor.dtype)
    save_file(tensors, file, {"format": "pt"})
    export_portable(open_checkpoint(folder / "tiny"), folder / "portable")
    return Lab(folder)


def fed(runner: GraphRunner) -> np.ndarray:
    ends = [*ENDS, *range(ENDS[-1] + 1, TOKENS + 1)]
    chunks = zip([0, *ends[:-1]], ends, strict=True)
    return np.concatenate([runner.feed(IDS[:, a:b])[0] for a, b in chunks])


def computed(folder: Path, graph: str) -> np.ndarray:
    """Logits [T, V] of one graph of a package, its activations not rounded to 8 bits."""
    return fed(opened(folder, graph, ir.load(folder / graph)))


def opened(folder: Path, graph: str, model: ir.Model) -> GraphRunner:
    layers = Manifest.load(folder, graph).kv.layers
    windows = [layer.kept for layer in layers]
    for node in model.graph.all_nodes():
        node.attributes.pop("accuracy_level", None)
    return GraphRunner(open_model(for_cpu(model), folder, threads=1), windows)


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest |difference|, as a share of the largest |logit|."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# QMoE on the CPU rounds activations to 8 bits where weights have 8, accuracy_level or not: each to
# half a 127th of its block's largest, about twice the root mean square; in two products a layer.
EIGHT_BITS = 2 * math.sqrt(2 * LAYERS) * 2 / (127 * math.sqrt(12))


def tolerance(activations: str) -> float:
    """As in tests/parity: five dot products a layer follow one another, over K each.

    In 16 bits sums are kept in float32 and it is each result that is rounded, about ten a layer
    (norms, products, SwiGLU, residuals), by half an eps.
    """
    if activations == "float32":
        return math.sqrt(5 * LAYERS * WIDEST) * EPS[activations]
    return math.sqrt(10 * LAYERS) * EPS[activations]


@pytest.mark.parametrize(("target", "preset", "activations"), CASES)
def test_a_target_computes_what_the_portable_graph_does(
    lab: Lab, target: Target, preset: str, activations: str
) -> None:
    folder = lab.package(target, preset, activations)
    (graph,) = graph_files(folder)
    most = allowed(target, preset, activations)
    ours = computed(folder, graph)
    assert not faulty(ours, lab.oracle(preset), lab.routing_gap(preset), most)


@pytest.mark.parametrize("target", load_targets().values(), ids=lambda target: target.name)
def test_128_experts(many: Lab, target: Target) -> None:
    activations = "float32" if "float32" in target.activations else target.activations[0]
    folder = many.package(target, "int4", activations)
    (graph,) = graph_files(folder)
    ours, right = computed(folder, graph), many.oracle("int4")
    # Of so many experts, rounding to 16 bits moves some tokens to others; most stay.
    typical = np.max if activations == "float32" else np.median
    for theirs, is_right in ((right, True), (many.oracle("int4", other_experts), False)):
        away = np.abs(ours - theirs).max(-1) / np.abs(theirs).max()
        assert bool(typical(away) < tolerance(activations)) is is_right


def allowed(target: Target, preset: str, activations: str) -> float:
    """The tolerance of a package on the CPU provider."""
    rounded = preset == "int8" and target.experts == "QMoE"
    return max(tolerance(activations), EIGHT_BITS if rounded else 0)


def faulty(ours: np.ndarray, theirs: np.ndarray, gap: np.ndarray, most: float) -> bool:
    """Whether logits [T, V] are further apart than `most` explains.

    A token that was as near to another expert as rounding may move it can get that one; few are.
    """
    away = np.abs(ours - theirs).max(-1) / np.abs(theirs).max()
    return bool((away[gap > most] > most).any()) or (away > most).sum() > TOKENS // 20


@pytest.mark.parametrize(
    ("target", "preset", "activations"), [case for case in CASES if case.values[2] == "float16"]
)
def test_float16_holds_the_residual_stream(
    lab: Lab, loud: Lab, target: Target, preset: str, activations: str
) -> None:
    """Loud or quiet, and its mean square too, which some norms keep in float16.

    The CPU provider leaves casts out where it can, so its logits alone would not show it.
    """
    half = np.finfo(np.float16)
    logits, stream = residual(loud, target, preset, activations)
    for values in stream:
        assert values.dtype == np.float16 and np.isfinite(values).all()
        # Published models are 2,880 wide and have few loud channels.
        assert np.abs(values).max().astype(np.float32) ** 2 / 2880 < half.max
    most = allowed(target, preset, activations)
    assert not faulty(logits, loud.oracle(preset), loud.routing_gap(preset), most)
    _, stream = residual(lab, target, preset, activations)
    for values in stream[2::3]:  # the sums
        assert np.square(values.astype(np.float32)).mean(-1).min() > half.tiny


def residual(
    lab: Lab, target: Target, preset: str, activations: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits [T, V]; what each norm but the first reads, [1, T, H]: two addends and their sum."""
    folder = lab.package(target, preset, activations)
    (graph,) = graph_files(folder)
    model = ir.load(folder / graph)
    for norm in model.graph:
        if norm.op_type == "SkipSimplifiedLayerNormalization":
            model.graph.outputs.extend([*norm.inputs[:2], norm.outputs[3]])
    runner = opened(folder, graph, model)
    logits = runner.feed(IDS)[0]
    assert len(runner.extra) == 3 * 2 * LAYERS
    return logits, runner.extra


def no_sinks(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        if name.endswith(".sinks"):
            value.const_value = ir.Tensor(np.full(value.shape.numpy(), -1e9, np.float32), name=name)


def wider_window(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.op_type == "WindowedAttention" and node.attributes.get_int("window"):
            node.attributes["window"] = ir.AttrInt64("window", 17)


def other_experts(model: ir.Model) -> None:
    value = model.graph.initializers["model.layers.1.mlp.experts.down_proj"]
    value.const_value = ir.Tensor(np.roll(value.const_value.numpy(), 1, 0), name=value.name)


def up_for_gate(model: ir.Model) -> None:
    value = model.graph.initializers["model.layers.1.mlp.experts.gate_up_proj"]
    swapped = value.const_value.numpy().reshape(4, 64, 2, 64)[:, :, ::-1].reshape(4, 128, 64)
    value.const_value = ir.Tensor(swapped.copy(), name=value.name)


def narrow_limit(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.op_type == "MoE":
            node.attributes["swiglu_limit"] = ir.AttrFloat32("swiglu_limit", 0.5)


def no_bias(model: ir.Model) -> None:
    value = model.graph.initializers["model.layers.1.mlp.experts.down_proj_bias"]
    value.const_value = ir.Tensor(np.zeros(value.shape.numpy(), np.float32), name=value.name)


@pytest.mark.parametrize(
    "damage", [no_sinks, wider_window, other_experts, up_for_gate, narrow_limit, no_bias]
)
def test_canary(lab: Lab, damage: Callable[[ir.Model], None]) -> None:
    """Each fault would show, in every element type that a target computes in."""
    wrong, right, gap = lab.oracle("int4", damage), lab.oracle("int4"), lab.routing_gap("int4")
    for activations in {kind for target in tables() for kind in target.activations}:
        most = max(tolerance(activations), EIGHT_BITS)
        assert faulty(wrong, right, gap, most), activations
        assert error(wrong, right) > 2 * most, activations
