"""Parity, verify, inspect and bench: right on a right package, and never on a wrong one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_onnx.evaluation.inspect import describe
from gptoss_onnx.evaluation.parity import Parity, parity
from gptoss_onnx.evaluation.verify import operators, verify
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export_portable
from gptoss_onnx.runtimes.bench import bench, bytes_per_token
from gptoss_onnx.runtimes.package import Package
from tests.conftest import DemoPackage, seal

pytestmark = pytest.mark.slow

GRAPH, DATA = "model.onnx", "model.onnx.data"
LAST = "model.layers.5.input_layernorm.weight"
# Float32 in another order of operations; measured 2e-12 nats, where int8 alone costs about 1e-4.
FP32_KL = 1e-5
Edit = Callable[[ir.ExternalTensor], None]


@pytest.fixture(scope="module")
def portable(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable") / "demo"
    return export_portable(open_checkpoint(str(demo)), folder)


@pytest.fixture
def copy(demo_package: DemoPackage, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_package("fp32"), tmp_path / "copy"))


def sign(folder: Path) -> None:
    """The manifest of the files as they are now."""
    seal(folder)


def alter(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change one tensor's values in the data file, and sign."""
    tensor = ir.load(folder / GRAPH).graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None
    values = np.asarray(change(tensor.numpy().copy()), np.float32)
    with (folder / DATA).open("r+b") as file:
        file.seek(tensor.offset)
        file.write(values.tobytes())
    sign(folder)


def problems(folder: Path) -> list[str]:
    return verify(folder, lambda count: None)


def measured(folder: Path, portable: Path) -> Parity:
    return parity(Package.open(folder), portable, steps=24)


def test_the_fp32_package_is_the_portable_graph(demo_package: DemoPackage, portable: Path) -> None:
    found = measured(demo_package("fp32"), portable)
    assert abs(found.mean_kl) < FP32_KL
    assert (found.tokens, found.top1_agreement) == (25, 1.0)
    assert found.max_logit_difference < 1e-2


def test_fewer_bits_are_further_away(demo_package: DemoPackage, portable: Path) -> None:
    int8, int4 = (measured(demo_package(preset), portable) for preset in ("int8", "int4"))
    assert FP32_KL < int8.mean_kl < int4.mean_kl < 0.5
    assert int8.top1_agreement >= int4.top1_agreement > 0.5


def test_parity_sees_one_altered_tensor(copy: Path, portable: Path) -> None:
    alter(copy, LAST, lambda weight: weight * 2)
    assert problems(copy) == []  # bytes, kernels and a run are right: only parity can tell
    assert measured(copy, portable).mean_kl > 100 * FP32_KL


@pytest.mark.parametrize("preset", ["fp32", "int8", "int4"])
def test_verify_finds_nothing_wrong(preset: str, demo_package: DemoPackage) -> None:
    assert problems(demo_package(preset)) == []


def test_verify_finds_a_changed_byte(copy: Path) -> None:
    with (copy / DATA).open("r+b") as file:
        file.seek(-1, 2)
        byte = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([byte ^ 1]))
    assert problems(copy) == [f"{DATA}: its bytes changed: the SHA-256 is not the manifest's"]


def test_verify_finds_an_attribute_the_target_does_not_know(copy: Path) -> None:
    model = ir.load(copy / GRAPH)
    node = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    node.attributes["softcap"] = ir.AttrFloat32("softcap", 50.0)
    ir.save(model, copy / GRAPH)
    sign(copy)
    (found,) = problems(copy)
    assert "attribute softcap is not known there" in found
    assert found.startswith(f"{GRAPH}: {node.name}: GroupQueryAttention on cpu")


def test_verify_finds_an_operator_the_target_does_not_have(copy: Path) -> None:
    model = ir.load(copy / GRAPH)
    node = next(node for node in model.graph if node.op_type == "Sub")
    node.op_type = "Mod"
    ir.save(model, copy / GRAPH)
    sign(copy)
    assert any("Mod on cpu: no kernel" in found for found in problems(copy))


def test_verify_finds_weights_that_are_not_numbers(copy: Path) -> None:
    def spoil(weight: Any) -> Any:
        weight[0] = np.nan
        return weight

    alter(copy, LAST, spoil)
    assert problems(copy) == [f"{GRAPH}: its logits are not finite"]


def test_verify_reports_every_wrong_file(copy: Path) -> None:
    (copy / "config.json").unlink()
    with (copy / "README.md").open("a") as file:
        file.write("more")
    missing, longer = sorted(problems(copy), key=lambda found: "missing" not in found)
    assert missing == "config.json: missing"
    assert longer.startswith("README.md: ")


def test_inspect_a_package(demo_package: DemoPackage) -> None:
    folder = demo_package("int4")
    found = describe(str(folder))
    assert found["package"] == "int4"
    assert found["source"]["name"] == "demo"
    assert found["windowed_kv_layers"] == 3
    assert found["operators"] == dict(operators(folder, "model.onnx"))
    assert (found["operators"]["QMoE"], found["operators"]["GroupQueryAttention"]) == (6, 6)
    sizes = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != "manifest.json"}
    assert found["file_bytes"] == sizes
    assert found["total_bytes"] == sum(sizes.values())


def test_inspect_a_checkpoint(demo: Path) -> None:
    found = describe(str(demo))
    assert (found["checkpoint"], found["expert_format"]) == ("demo", "mxfp4")
    assert (found["num_layers"], found["num_experts"]) == (6, 8)
    assert (found["windows"], found["global_tokens"]) == ([128, "all"] * 3, 0)
    assert set(found["dtype_bytes"]) == {"BF16", "U8"}
    size = (demo / "model.safetensors").stat().st_size
    assert 0 < size - found["total_bytes"] < 50_000  # the header


def test_bench(demo_package: DemoPackage) -> None:
    folder = demo_package("int4")
    found = bench(folder, prompt_tokens=200, new_tokens=20, threads=1)
    assert (found.prompt_tokens, found.new_tokens, found.threads) == (200, 20, 1)
    assert 0 < found.load_seconds < found.first_token_seconds
    assert min(found.prefill_tokens_per_second, found.decode_tokens_per_second) > 0
    assert found.bandwidth_share == pytest.approx(
        found.bytes_per_token * found.decode_tokens_per_second / found.memory_bandwidth
    )
    assert 0 < found.bandwidth_share < 1
    if found.anonymous_bytes is not None:
        assert 0 < found.anonymous_bytes < (found.peak_bytes or 0)
    package = Package.open(folder)
    weights = package.manifest.weights
    stored = sum(weights[group] for group in ("embedding", "experts", "dense"))
    tensors = (value.const_value for value in ir.load(folder / GRAPH).graph.initializers.values())
    assert stored == sum(tensor.nbytes for tensor in tensors if tensor is not None)
    # 2 of 8 experts; key and value of 2 heads of 64: 3 layers of 200 tokens and 3 of the window.
    expected = weights["dense"] + weights["experts"] // 4
    assert bytes_per_token(package, 200) - expected == 2 * 4 * 2 * 64 * (3 * 200 + 3 * 128)


@pytest.mark.parametrize("weights", [{}, {"dense": 1, "experts": 1}, {"num_experts": 0}])
def test_bench_of_a_manifest_that_says_nothing_of_weights(
    demo_package: DemoPackage, weights: dict[str, int], tmp_path: Path
) -> None:
    """It need not."""
    folder = Path(shutil.copytree(demo_package("int4"), tmp_path / "other"))
    content = json.loads((folder / "manifest.json").read_text("utf-8"))
    known = {**content["weights"], **weights} if "num_experts" in weights else weights
    seal(folder, {**content, "weights": known})
    found = bench(folder, prompt_tokens=4, new_tokens=2, threads=1)
    assert (found.bytes_per_token, found.bandwidth_share) == (None, None)
