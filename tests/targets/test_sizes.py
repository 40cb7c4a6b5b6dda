"""What packages weigh: each weight's bits, scales included, and next to nothing beside."""

from __future__ import annotations

import math

import onnx_ir as ir
import pytest

from gptoss_onnx.evaluation.units import units
from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.plan import Options, Plan, plan
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.quantization import Format, Quantization
from gptoss_onnx.runtimes.target import Target, load_targets

pytestmark = pytest.mark.slow

LAYERS = 2
CASES = [
    pytest.param(target, preset, id=f"{target.name}-{target.min_runtime}-{preset}")
    for newest in load_targets().values()
    for target in (newest, *newest.older)
    for preset in target.presets
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Wide enough for biases, norms and tables to be as small a part as they are in 20B."""
    sizes = {"hidden": 640, "intermediate": 640, "experts": 8, "vocab": 4096, "layers": LAYERS}
    folder = tmp_path_factory.mktemp("sizes") / "wide"
    return open_checkpoint(synthesize(folder, geometry="tiny", **sizes))


def bits(form: Format, scale_bits: int) -> float:
    """Of a weight."""
    if form.kind == "float":
        return scale_bits  # as every float there
    scale = 8 if form.kind == "mxfp4" else scale_bits
    return form.bits + scale / form.block


def expected_bytes(made: Plan) -> float:
    """Weights times bits, of everything that is quantized, and float for the rest."""
    half = all(graph.activations != "float32" for graph in made.graphs)
    floats, quantization = 16 if half else 32, made.options.quantization
    spec, total = made.checkpoint.spec, 0.0
    sizes = {view.name: math.prod(view.shape) for view in made.checkpoint.tensors.values()}
    for unit in units(LAYERS):
        for name in unit.weights:
            if unit.group == "experts":
                size = math.prod(
                    made.checkpoint.expert_weight(unit.layer, name.split(".")[-1]).shape
                )
            else:
                size = sizes.pop(name)
            total += size * bits(quantization.of(unit.group, unit.layer), floats) / 8
    packed = sum(size for name, size in sizes.items() if not name.endswith(("blocks", "scales")))
    tables = spec.max_position_embeddings * spec.head_dim  # cos and sin
    return total + (packed + tables) * floats / 8


@pytest.mark.parametrize(("target", "preset"), CASES)
def test_a_package_is_within_3_percent_of_weights_times_bits(
    checkpoint: Checkpoint, target: Target, preset: str
) -> None:
    made = plan(checkpoint, Options(target, Quantization.parse(preset), kv="float"))
    assert made.written_bytes == pytest.approx(expected_bytes(made), rel=0.03)


def test_canary(checkpoint: Checkpoint) -> None:
    """A weight kept twice, or in 8 bits instead of 4, would show."""
    made = plan(checkpoint, Options(load_targets()["cpu"], Quantization.parse("int4")))
    graph = made.graphs[0].model.graph
    (twice,) = (
        v for n, v in graph.initializers.items() if n.endswith("0.mlp.experts.down_proj_int4")
    )
    copy = ir.Value(name="twice", const_value=ir.Tensor(twice.const_value.numpy(), name="twice"))
    graph.register_initializer(copy)
    assert made.written_bytes > 1.03 * expected_bytes(made)
