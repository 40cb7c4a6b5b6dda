"""One .ort file: the same numbers, loadable on the promised runtime, nothing of this processor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from gptoss_onnx.evaluation.probe import Probe
from gptoss_onnx.evaluation.verify import verify
from gptoss_onnx.mobile.ort_format import write_ort
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import Manifest
from gptoss_onnx.runtimes.ort_file import ort_nodes
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.target import get_target
from tests.mobile.conftest import PhonePackage
from tests.targets.answers import answers as ask
from tests.targets.test_cpu_releases import FILE, QUESTIONS, answers

pytestmark = pytest.mark.slow

ANDROID = get_target("android")
TOKENS = list(range(100, 300))  # past the window of 128


def logits(folder: Path) -> np.ndarray:
    session = Session(Package.open(folder, threads=1))
    steps = [session.feed(TOKENS[:150])]
    steps += [session.feed([token]) for token in TOKENS[150:]]
    return np.concatenate(steps)


def test_the_numbers_are_those_of_the_graph_it_was_made_of(
    android: Path, android_onnx: Path
) -> None:
    assert sorted(path.name for path in android.glob("model*")) == ["model.ort"]
    assert np.array_equal(logits(android), logits(android_onnx))


def test_another_weight_gives_other_numbers(
    android: Path, phone_package: PhonePackage, tmp_path: Path
) -> None:
    other = phone_package(tmp_path / "int8", ANDROID, "int8")
    assert not np.allclose(logits(android), logits(other), atol=0.1)


def test_the_manifest_and_every_check_know_the_file(android: Path) -> None:
    manifest = json.loads((android / "manifest.json").read_text())
    assert manifest["graph"] == "model.ort" and manifest["min_runtime"] == "1.29"
    assert manifest["kv"]["dtype"] == "int8"
    assert not (android / "genai_config.json").exists()  # its KV cache is windowed
    assert verify(android, lambda count: None) == []


def test_verify_refuses_a_node_that_the_table_does_not_know(
    android: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = {k: v for k, v in ANDROID.kernels.items() if k[1] != "QuickGelu"}
    monkeypatch.setattr(
        "gptoss_onnx.evaluation.verify.known_target", lambda *_: replace(ANDROID, kernels=kernels)
    )
    assert "QuickGelu on android: no kernel" in verify(android, lambda count: None)[0]


def test_no_attribute_is_left_that_the_promised_runtime_does_not_know(
    android: Path, android_onnx: Path, tmp_path: Path
) -> None:
    with ort_nodes(android / "model.ort") as nodes:
        assert [node.name for node in nodes if node.refusal(ANDROID)] == []
    written = tmp_path / "as_written.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(written)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(android_onnx / "model.onnx", options)
    with ort_nodes(written) as nodes:  # the canary: so they are without `write_ort`
        assert any("causal" in node.attributes and node.refusal(ANDROID) for node in nodes)


def test_dropping_attributes_leaves_the_others(android_onnx: Path, tmp_path: Path) -> None:
    ort = tmp_path / "model.ort"
    write_ort(android_onnx / "model.onnx", ort, ANDROID)
    with ort_nodes(ort, write=True) as nodes:
        node = next(node for node in nodes if node.op_type == "GroupQueryAttention")
        before = node.attributes
        node.drop(["num_heads", "scale"])
    with ort_nodes(ort) as nodes:
        node = next(node for node in nodes if node.op_type == "GroupQueryAttention")
        assert node.attributes == {
            k: v for k, v in before.items() if k not in ("num_heads", "scale")
        }


def test_weights_lie_in_it_as_they_were_exported(android: Path, android_onnx: Path) -> None:
    """Nothing was packed for this processor, no operator put into a layout of its own."""
    data = (android / "model.ort").read_bytes()
    model = ir.load(android_onnx / "model.onnx")
    weights = {
        name: v.const_value for name, v in model.graph.initializers.items() if ".experts." in name
    }
    large = {name: weight for name, weight in weights.items() if weight and weight.nbytes > 10_000}
    absent = [name for name, weight in large.items() if data.find(weight.tobytes()) < 0]
    assert len(large) > 50 and absent == []
    with ort_nodes(android / "model.ort") as nodes:
        assert {node.domain for node in nodes} == {"", "com.microsoft"}


@pytest.mark.parametrize(("runtime", "release"), [("1.29", "1.29.0"), ("1.27", "1.27.0")])
def test_the_promised_runtime_gives_the_same_answers(
    runtime: str,
    release: str,
    android_onnx: Path,
    phone_package: PhonePackage,
    tmp_path: Path,
) -> None:
    made = phone_package(tmp_path / "package", get_target("android", runtime))
    assert Manifest.load(made).min_runtime == runtime
    assert (made / "model.ort").is_file()
    # The oracle is the newest release with the graph as it was before it became .ort.
    expected = ask(Package.open(android_onnx, threads=1), FILE, QUESTIONS)
    assert answers(made, release) == json.loads(json.dumps(expected["replies"]))


def test_evaluation_says_why_it_cannot_look_into_one(android: Path) -> None:
    with pytest.raises(UserError, match=r"model\.ort is ONNX Runtime's own format"):
        Probe.of_package(android)


def test_data_beyond_a_packs_size_stays_in_shards(
    phone_package: PhonePackage, tmp_path: Path
) -> None:
    small = replace(ANDROID, max_data_bytes=3_000_000)
    folder = phone_package(tmp_path / "package", small)
    sizes = {path.name: path.stat().st_size for path in folder.glob("model.onnx.data*")}
    assert len(sizes) > 3 and max(sizes.values()) <= 3_000_000
    assert not list(folder.glob("*.ort"))
    assert (folder / "required_operators.config").is_file()
    assert np.isfinite(logits(folder)).all()


def test_graphs_that_share_weights_read_them_from_data_files(
    phone_package: PhonePackage, tmp_path: Path
) -> None:
    folder = phone_package(tmp_path / "package", get_target("cpu"), also=(ANDROID,))
    assert (folder / "model.android.onnx").is_file() and not list(folder.glob("*.ort"))
    assert (folder / "required_operators.config").read_text().splitlines()[0].count("android")


def test_a_conversion_that_fails_leaves_no_package(
    phone_package: PhonePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("model.ort: cannot be written")

    monkeypatch.setattr("gptoss_onnx.mobile.packaging.write_ort", fail)
    with pytest.raises(UserError, match="cannot be written"):
        phone_package(tmp_path / "package", ANDROID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime", [None, get_target("ios").older[-1].min_runtime])
@pytest.mark.parametrize("kv", ["float", "int8"])
@pytest.mark.parametrize("quant", get_target("ios").presets)
def test_every_kind_of_package_is_one_file_that_its_table_takes(
    phone_package: PhonePackage, tmp_path: Path, quant: str, kv: str, runtime: str | None
) -> None:
    """ONNX Runtime spells defaults out: those that no other kind of package names as well."""
    target = get_target("ios", runtime)
    package = phone_package(tmp_path / "package", target, quant, kv=kv)
    assert (package / "model.ort").is_file()
    assert verify(package, lambda count: None) == []
