"""Packages wrong in one layer rank far behind int4, on a checkpoint that needs all its parts.

The demo hardly uses its sinks (0.0018 nats without any). Here the checkpoint is random, so that
every expert counts, and its sinks take most of the attention.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file

from gptoss_onnx.evaluation.probe import Probe
from gptoss_onnx.evaluation.reference import Reference, portable_graph, reference
from gptoss_onnx.evaluation.scoring import score
from gptoss_onnx.evaluation.statistics import router_agreement
from gptoss_onnx.evaluation.texts import Passage, Span
from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import GRAPH, Options
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.target import get_target

pytestmark = pytest.mark.slow

LAYERS, SPOILT = 4, 2  # of the layers 0 and 2 with a sliding window
PREFIX = f"model.layers.{SPOILT}"
SINKS = 6.0  # beside four keys with scores of about one: 0.98 of the attention
FAR = 5.0  # times int4's divergence


def quiet(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Made:
    checkpoint: Checkpoint
    passages: list[Passage]
    expected: Reference
    fp32: Path
    int4: float  # nats

    def kld(self, folder: Path) -> float:
        return float(
            score(Probe.of_package(folder), self.passages, self.expected, quiet).kld.mean()
        )


@pytest.fixture(scope="module")
def made(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("canaries")
    folder = root / "random"
    sizes = {"layers": LAYERS, "vocab": 4096, "sliding_window": 4}
    synthesize(folder, geometry="tiny", tokenizer=demo, **sizes)
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.self_attn.sinks"][:] = SINKS
    save_file(tensors, weights, metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    for preset in ("fp32", "int4"):
        options = Options(get_target("cpu"), Quantization.parse(preset, ()))
        export(checkpoint, options, root / preset, quiet)
    rng = np.random.default_rng(0)
    passages = [
        Passage(tuple(map(int, rng.integers(0, 4000, 120))), (Span(1, 120, "text"),), "en")
        for _ in range(4)
    ]
    with portable_graph(checkpoint) as portable:
        expected = reference(checkpoint, passages, lambda: portable, quiet)
    known = Made(checkpoint, passages, expected, root / "fp32", 0.0)
    return Made(checkpoint, passages, expected, root / "fp32", known.kld(root / "int4"))


def alter(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change one tensor's values, in the data file or in the graph."""
    model = ir.load(folder / GRAPH)
    value = model.graph.initializers[f"{PREFIX}.{name}"]
    tensor = value.const_value
    assert tensor is not None
    values = np.asarray(change(tensor.numpy().copy()), np.float32)
    if isinstance(tensor, ir.ExternalTensor):
        with (folder / f"{GRAPH}.data").open("r+b") as file:
            file.seek(tensor.offset or 0)
            file.write(values.tobytes())
    else:
        value.const_value = ir.Tensor(values, name=value.name)
        ir.save(model, folder / GRAPH)


def corrupt_layer(folder: Path) -> None:
    rng = np.random.default_rng(0)
    alter(folder, "self_attn.o_proj.weight", lambda weight: rng.permutation(weight.ravel()))
    for name in ("gate_up_proj", "down_proj"):
        alter(folder, f"mlp.experts.{name}", lambda weight: -weight)


def swap_experts(folder: Path) -> None:
    for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"):
        alter(folder, f"mlp.experts.{name}", lambda weight: np.roll(weight, 1, axis=0))


def drop_sinks(folder: Path) -> None:
    alter(folder, "self_attn.sinks", lambda sinks: np.full_like(sinks, -1e4))


def test_the_right_package_is_its_source(made: Made) -> None:
    assert made.kld(made.fp32) < 1e-6
    assert made.int4 > 1e-3  # a measure that sees nothing would rank nothing


@pytest.mark.parametrize("spoil", [corrupt_layer, swap_experts, drop_sinks])
def test_one_wrong_layer_ranks_far_behind_int4(
    spoil: Callable[[Path], None], made: Made, tmp_path: Path
) -> None:
    wrong = Path(shutil.copytree(made.fp32, tmp_path / "wrong"))
    spoil(wrong)
    assert made.kld(wrong) > FAR * made.int4


def test_a_forced_router_shows_in_its_layer(made: Made, tmp_path: Path) -> None:
    wrong = Path(shutil.copytree(made.fp32, tmp_path / "wrong"))
    alter(wrong, "mlp.router.bias", lambda bias: bias + np.array([0, 0, 1e3, 1e3], np.float32))
    tokens = score(Probe.of_package(wrong), made.passages, made.expected, quiet)
    *before, forced, after = [row["mean"] for row in router_agreement(tokens)]
    assert min(before) > 0.999
    assert forced < 0.5
    assert forced < after < 1
