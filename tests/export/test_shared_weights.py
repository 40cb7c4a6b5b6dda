"""One set of weights, many graphs: written once, read by each, chosen by what is here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from gptoss_onnx.evaluation.inspect import describe
from gptoss_onnx.evaluation.verify import verify
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import Options
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.export.writer import DataWriter
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import Manifest, graph_files
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.package_files import check_files
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.target import get_target

pytestmark = pytest.mark.slow

NAMES = ("cpu", "node", "web")
# Each graph's file, its target, and its file in a package of that target alone.
GRAPHS = [
    ("model.onnx", "cpu", "model.onnx"),
    ("model.node.onnx", "node", "model.onnx"),
    ("model.web.onnx", "web", "model.onnx"),
    ("model.web.float16.onnx", "web", "model.web.float16.onnx"),
]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("shared")

    def made(*names: str, quant: str = "int4", head_dim: int = 32, **options: Any) -> Path:
        first, *also = map(get_target, names)
        chosen = Options(first, Quantization.parse(quant), also=tuple(also), **options)
        checkpoint = folder / f"tiny-{head_dim}"
        if not checkpoint.exists():
            synthesize(checkpoint, geometry="tiny", layers=2, head_dim=head_dim)
        output = folder / "-".join((*names, quant, str(head_dim), *options))
        if not output.exists():
            export(open_checkpoint(str(checkpoint)), chosen, output, lambda *_: None)
        return output

    return made


def logits(folder: Path, graph: str | None = None) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 512, 40).tolist()
    cpu = ["CPUExecutionProvider"]
    package = Package.open(folder, threads=1, providers=cpu, graph=graph)
    return Session(package).feed(ids).copy()


def test_each_graph_computes_as_in_a_package_of_its_own(make: Make) -> None:
    together = make(*NAMES)
    assert graph_files(together) == [file for file, *_ in GRAPHS]
    for file, name, own in GRAPHS:
        np.testing.assert_array_equal(logits(together, file), logits(make(name), own))
    assert verify(together, lambda count: None) == []


def test_a_scale_that_one_target_wants_in_the_weights_is_in_every_graph(make: Make) -> None:
    """Of heads of 64 it is a power of two: what differs is how a kernel multiplies by it."""
    together = make(*NAMES, head_dim=64)
    for file, name, own in GRAPHS:
        alone = logits(make(name, head_dim=64), own)
        bound = 1e-2 if "float16" in file else 1e-5
        assert np.abs(logits(together, file) - alone).max() <= bound * np.abs(alone).max()


def test_the_weights_are_there_once(make: Make) -> None:
    sizes = [(folder / "model.onnx.data").stat().st_size for folder in (make(*NAMES), make("cpu"))]
    assert sizes[0] == sizes[1]
    found = describe(str(make(*NAMES)))
    weights = {graph["weight_bytes"] for graph in found["graphs"].values()}
    assert [graph["target"] for graph in found["graphs"].values()] == [
        name for _, name, _ in GRAPHS
    ]
    assert {graph["own_bytes"] for graph in found["graphs"].values()} == {0}
    # Node's graph holds a tiny expert's bias in itself, where the others read all experts' at once.
    assert min(weights) == found["shared_bytes"] > 0.8 * sizes[0]
    assert "operators" in describe(str(make("cpu"))) and "graphs" not in describe(str(make("cpu")))


def test_weights_in_another_type_are_not_shared(tmp_path: Path) -> None:
    def graph(dtype: type) -> ir.Graph:
        tensor = ir.Tensor(np.arange(600, dtype=dtype).astype(np.float32), name="w")
        weight = ir.Value(name="w", const_value=tensor)
        if dtype is np.int64:
            weight.const_value = ir.Tensor(np.arange(600), name="w")
        node = ir.node("Identity", [weight])
        return ir.Graph([], node.outputs, nodes=[node], initializers=[weight])

    graphs = [graph(np.float32), graph(np.int64), graph(np.float32)]
    DataWriter(tmp_path, "data").write(*graphs)
    stored = [g.initializers["w"].const_value for g in graphs]
    assert stored[0].offset == stored[2].offset != stored[1].offset
    np.testing.assert_array_equal(stored[1].numpy(), np.arange(600))


def rewritten(folder: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(folder, copy)
    content = json.loads((copy / "manifest.json").read_text())
    change(content)
    (copy / "manifest.json").write_text(json.dumps(content))
    return copy


def test_the_first_graph_that_can_run_here_is_taken(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(*NAMES)
    assert Manifest.load(folder).graph == "model.onnx"
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.0")
    assert (Manifest.load(folder).graph, Manifest.load(folder).target) == (
        "model.node.onnx",
        "node",
    )
    assert Manifest.load(folder, "model.web.onnx").padded_batches is False
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.0")
    with pytest.raises(UserError, match=r"needs onnxruntime 1\.32 or newer, this is 1\.20\.0"):
        Manifest.load(folder)


def test_a_graph_that_asks_for_a_device_feature_is_passed_over(make: Make, tmp_path: Path) -> None:
    def ask(content: dict[str, Any]) -> None:
        content["graphs"][0]["requires"] = ["shader-f16"]

    assert Manifest.load(rewritten(make(*NAMES), tmp_path / "copy", ask)).target == "node"


def test_a_missing_graph_is_found(make: Make, tmp_path: Path) -> None:
    def forget(content: dict[str, Any]) -> None:
        del content["files"]["model.web.onnx"]

    copy = rewritten(make(*NAMES), tmp_path / "copy", forget)
    with pytest.raises(UserError, match=r"graphs\[2\]\.graph is model\.web\.onnx"):
        check_files(copy)


def test_a_preset_that_one_of_the_targets_lacks(make: Make) -> None:
    with pytest.raises(UserError, match=r"^web has no preset mxfp4; it has int8, int4$"):
        make("cpu", "web", quant="mxfp4")


def test_activations_that_a_target_lacks(make: Make) -> None:
    with pytest.raises(UserError, match=r"^--activations float16: cpu has float32$"):
        make("cpu", activations="float16")
