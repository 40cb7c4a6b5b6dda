"""Manifests are read strictly, files checked to the byte, packages opened without reading them."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from gptoss_onnx.runtimes import manifest as manifest_module
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST, KvLayer, Manifest, check_files, write_manifest
from gptoss_onnx.runtimes.package import Package


@pytest.fixture
def copy(package_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package_folder, tmp_path / "copy"))


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | changes))


def one_line_error(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        Package.open(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_manifest_is_read(package_folder: Path) -> None:
    manifest = Manifest.load(package_folder)
    assert (manifest.name, manifest.target, manifest.logits) == ("tiny", "cpu", "last")
    assert manifest.kv.layers == (KvLayer(8, True), KvLayer(None, False), KvLayer(8, True))
    assert manifest.files["model.onnx"].size == (package_folder / "model.onnx").stat().st_size
    assert MANIFEST not in manifest.files


def test_fields_of_the_future_are_passed_over(copy: Path) -> None:
    edit(copy, colour="blue")
    assert Manifest.load(copy) == Manifest.load(copy)


def test_versions_are_numbers(copy: Path) -> None:
    edit(copy, min_runtime="1.4")  # "4" sorts behind "32"
    assert Manifest.load(copy).min_runtime == "1.4"


def test_no_manifest(tmp_path: Path) -> None:
    assert "is not a package" in one_line_error(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", "\udcff"], ids=["not JSON", "not an object", "not UTF-8"]
)
def test_bad_json(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert MANIFEST in one_line_error(copy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format 2 is not known"),
        ({"format": None}, "format None"),
        ({"min_runtime": "1.99"}, "needs onnxruntime 1.99 or newer"),
        ({"min_runtime": "2"}, "needs onnxruntime 2 or newer"),
        ({"kv": {}}, "no 'dtype'"),
        ({"files": {"../secret": {"size": 1, "sha256": ""}}}, "outside the package"),
        ({"graph": "/model.onnx"}, "outside the package"),
        ({"graph": "other.onnx"}, "not among the manifest's files"),
        ({"logits": "some"}, "'some'"),
        ({"context_length": "long"}, "long"),
        ({"files": []}, "not a valid manifest"),
    ],
)
def test_manifests_that_cannot_be_run(copy: Path, changes: dict[str, Any], words: str) -> None:
    edit(copy, **changes)
    assert words in one_line_error(copy)


def test_a_field_is_missing(copy: Path) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    del content["vocab_size"]
    (copy / MANIFEST).write_text(json.dumps(content))
    assert "'vocab_size'" in one_line_error(copy)


def test_windowed_without_a_window(copy: Path) -> None:
    kv = json.loads((copy / MANIFEST).read_text())["kv"]
    kv["layers"][0]["window"] = None
    edit(copy, kv=kv)
    assert "no window" in one_line_error(copy)


def test_opening_checks_sizes_and_reads_no_weights(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "_sha256", lambda *_: pytest.fail("hashed at open"))
    package = Package.open(copy)
    assert not {"graph", "tokenizer", "harmony"} & set(vars(package))
    with (copy / "model.onnx.data").open("ab") as stream:
        stream.write(b"x")
    assert "model.onnx.data" in one_line_error(copy)
    (copy / "model.onnx.data").unlink()
    assert "model.onnx.data: missing" in one_line_error(copy)


def test_check_finds_every_kind_of_damage(copy: Path) -> None:
    assert check_files(copy) == []
    weights = copy / "model.onnx.data"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    (copy / "config.json").unlink()
    (copy / "generation_config.json").write_text("{}")
    problems = sorted(check_files(copy))
    assert [problem.split(":")[0] for problem in problems] == [
        "config.json", "generation_config.json", "model.onnx.data",
    ]  # fmt: skip
    words = ("missing", "2 bytes instead of", "bytes changed")
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


def test_check_names_a_broken_link(copy: Path) -> None:
    (copy / "config.json").unlink()
    (copy / "config.json").symlink_to("nowhere.json")
    assert check_files(copy) == ["config.json: missing (a link to nowhere.json)"]


def test_progress_counts_every_byte(copy: Path) -> None:
    counted: list[int] = []
    check_files(copy, counted.append)
    assert sum(counted) == sum(file.size for file in Manifest.load(copy).files.values())


def test_hashed_files_are_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"12")
    read: list[int] = []
    write_manifest(tmp_path, {"name": "x"}, {"sub/a": "given"}, read.append)
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert sum(read) == 2
    assert content["format"] == 1
    assert content["files"]["sub/a"] == {"size": 3, "sha256": "given"}
    assert content["files"]["b"]["sha256"].startswith("6b51d431df5d7f14")  # sha256sum of "12"
    write_manifest(tmp_path, {"name": "again"})
    assert set(json.loads((tmp_path / MANIFEST).read_text())["files"]) == {"b", "sub/a"}


@pytest.mark.parametrize(("ids", "stops"), [(7, {7}), ([7, 9], {7, 9}), (None, {257, 258, 264})])
def test_stop_ids(copy: Path, ids: Any, stops: set[int]) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    write_manifest(copy, json.loads((copy / MANIFEST).read_text()))
    assert Package.open(copy).stop_ids == stops


def test_sampling_comes_from_generation_config(copy: Path) -> None:
    config = {"do_sample": True, "temperature": 0.5, "top_p": 0.9}
    (copy / "generation_config.json").write_text(json.dumps(config))
    write_manifest(copy, json.loads((copy / MANIFEST).read_text()))
    sampling = Package.open(copy).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 0)
    assert not sampling.greedy


def test_threads_and_session_options(copy: Path) -> None:
    edit(
        copy, session={"intra_op_num_threads": 1, "config": {"session.intra_op.allow_spinning": 0}}
    )
    options = Package.open(copy).graph.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert Package.open(copy, threads=2).graph.get_session_options().intra_op_num_threads == 2
    with pytest.raises(UserError, match="threads is 0"):
        Package.open(copy, threads=0)
    edit(copy, session={"speed": "high"})
    with pytest.raises(UserError, match="unknown session option 'speed'"):
        _ = Package.open(copy).graph


def test_a_provider_that_is_absent_is_refused(copy: Path) -> None:
    with pytest.raises(UserError, match=r"no FastExecutionProvider; it has .*CPUExecution"):
        _ = Package.open(copy, providers=["FastExecutionProvider"]).graph


def test_a_manifests_providers_are_a_preference(copy: Path) -> None:
    edit(copy, session={"providers": ["FastExecutionProvider", "CPUExecutionProvider"]})
    assert Package.open(copy).graph.get_providers() == ["CPUExecutionProvider"]
    edit(copy, session={"providers": ["FastExecutionProvider"]})
    with pytest.raises(UserError, match=r"no FastExecutionProvider; it has .*CPUExecution"):
        _ = Package.open(copy).graph


def test_a_graph_that_does_not_load_is_one_line(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"not a graph")
    write_manifest(copy, json.loads((copy / MANIFEST).read_text()))
    with pytest.raises(UserError, match="cannot load the graph") as raised:
        _ = Package.open(copy).graph
    assert "\n" not in str(raised.value)


def test_no_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    write_manifest(copy, json.loads((copy / MANIFEST).read_text()))
    with pytest.raises(UserError, match="no tokenizer"):
        _ = Package.open(copy).tokenizer


def test_threads_that_ask_at_once_load_once(
    package_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, made = Package.open(package_folder), []
    real = onnxruntime.InferenceSession

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    ready = threading.Barrier(4)

    def ask(_: int) -> Any:
        ready.wait()
        return package.graph, package.tokenizer

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, range(4)))
    assert len(set(found)) == 1
    assert len(made) == 1
