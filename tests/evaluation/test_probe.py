"""Probing graphs: every token's logits and routers, from packages that give only the last's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GptOssForCausalLM

from gptoss_onnx.evaluation.graph_runner import GraphRunner
from gptoss_onnx.evaluation.probe import Probe
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export, export_portable
from gptoss_onnx.export.plan import Options
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.rounding import Rounding
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.target import get_target
from tests.conftest import DEMO, DemoPackage

pytestmark = pytest.mark.slow

IDS = [int(i) for i in np.random.default_rng(7).integers(0, 4000, 200)]  # beyond the window of 128
Open = Callable[[Path], Probe]
Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]


@pytest.fixture(scope="module")
def portable(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_portable(open_checkpoint(demo), tmp_path_factory.mktemp("portable") / "demo")


@pytest.fixture(scope="module")
def oracle(demo: Path) -> Arrays:
    """Logits [S, V] and router logits [L, S, E] of transformers in float32."""
    model = GptOssForCausalLM.from_pretrained(demo, dtype=torch.float32).float().eval()
    routers: list[torch.Tensor] = []
    for layer in model.model.layers:
        router = layer.mlp.router
        router.register_forward_hook(
            lambda module, inputs, output: routers.append(
                torch.nn.functional.linear(inputs[0], module.weight, module.bias)
            )
        )
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0].numpy()
    return logits, torch.stack([r.reshape(len(IDS), -1) for r in routers]).numpy()


def probed(probe: Probe, chunk: int = 64) -> Arrays:
    chunks = list(probe.run(IDS, chunk))
    assert [c.start for c in chunks] == list(range(0, len(IDS), chunk))
    logits = np.concatenate([c.logits for c in chunks])
    return logits, np.concatenate([c.routers for c in chunks], axis=1)


def test_the_portable_graph_and_the_fp32_package_are_the_model(
    portable: Path, demo_package: DemoPackage, oracle: Arrays
) -> None:
    logits, routers = oracle
    for probe in (Probe.of_portable(portable), Probe.of_package(demo_package("fp32"))):
        found = probed(probe)
        # Float32 in another order: 6 layers of 5 dot products over 256, relative to the largest.
        assert np.abs(found[0] - logits).max() < 1e-4 * np.abs(logits).max()
        assert np.abs(found[1] - routers).max() < 1e-4 * np.abs(routers).max()


def test_chunks_change_nothing(demo_package: DemoPackage) -> None:
    probe = Probe.of_package(demo_package("fp32"), threads=1)
    whole, pieces = probed(probe, chunk=200), probed(probe, chunk=33)
    for one, other in zip(whole, pieces, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < 1e-4 * np.abs(one).max()


@pytest.mark.parametrize("full_kv", [False, True])
def test_a_package_gives_what_it_gives_when_it_generates(
    demo_package: DemoPackage, full_kv: bool
) -> None:
    folder = demo_package("int4", full_kv=full_kv)
    windows = [None] * 6 if full_kv else [128, None] * 3
    runner = GraphRunner(folder / "model.onnx", windows)
    last = [runner.feed(np.array([IDS[a : a + 50]]))[0, -1] for a in range(0, 200, 50)]
    logits, _ = probed(Probe.of_package(folder), chunk=50)
    assert np.abs(logits[49::50] - np.array(last)).max() < 1e-4 * np.abs(logits).max()
    assert logits.shape == (len(IDS), 4096)


def test_probing_leaves_the_package_alone(demo_package: DemoPackage) -> None:
    folder = demo_package("int4")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    probed(Probe.of_package(folder))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def half_package(folder: Path, **options: Any) -> Path:
    made = Options(get_target("cuda"), Quantization.parse("int4"), Rounding("rtn"), **options)
    export(open_checkpoint(str(DEMO)), made, folder, lambda *_: None)
    return folder


def test_float16_is_probed_as_it_generates(tmp_path: Path) -> None:
    folder = half_package(tmp_path / "float16")
    runner = GraphRunner(folder / "model.onnx")
    last = [runner.feed(np.array([IDS[a : a + 50]]))[0, -1] for a in range(0, 200, 50)]
    logits, routers = probed(Probe.of_package(folder), chunk=50)
    assert routers.dtype == np.float32
    # float16 rounds to 2^-11; 6 layers of about ten results each, at random.
    assert np.abs(logits[49::50] - np.array(last)).max() < 0.01 * np.abs(logits).max()


def test_what_the_cpu_cannot_compute_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = half_package(tmp_path / "bfloat16", activations="bfloat16")
    with pytest.raises(
        UserError, match="evaluation runs on the CPU, which has no kernels for int4"
    ):
        Probe.of_package(folder)
