"""Manifests are read strictly, files checked to the byte, packages opened without reading them."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from gptoss_onnx.runtimes import batch, package_files
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST, KvLayer, Manifest
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.package_files import check_files
from gptoss_onnx.runtimes.session import Session
from tests.conftest import seal


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
        ({"min_runtime": "1.99"}, "needs onnxruntime 1.99 or newer"),
        ({"min_runtime": "2"}, "needs onnxruntime 2 or newer"),
        ({"graph": "other.onnx"}, "it must be among the files"),
    ],
)
def test_manifests_that_cannot_be_run(copy: Path, changes: dict[str, Any], words: str) -> None:
    edit(copy, **changes)
    assert words in one_line_error(copy)


def test_opening_checks_sizes_and_reads_no_weights(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_files, "sha256", lambda *_: pytest.fail("hashed at open"))
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


@pytest.mark.parametrize(("ids", "own"), [(7, {7}), ([7, 9], {7, 9}), (257, set()), (None, set())])
def test_harmonys_stops_end_a_reply_too(copy: Path, ids: Any, own: set[int]) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    seal(copy)
    assert Package.open(copy).stop_ids == own | {257, 258, 264}


def test_a_package_without_tokenizer_stops_where_its_file_says(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7]}))
    (copy / "tokenizer.json").unlink()
    seal(copy)
    assert Package.open(copy).stop_ids == {7}


def test_sampling_comes_from_generation_config(copy: Path) -> None:
    config = {"do_sample": True, "temperature": 0.5, "top_p": 0.9}
    (copy / "generation_config.json").write_text(json.dumps(config))
    seal(copy)
    sampling = Package.open(copy).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 0)
    assert not sampling.greedy


def test_threads(copy: Path) -> None:
    assert Package.open(copy).graph.get_session_options().intra_op_num_threads == 1
    assert Package.open(copy, threads=2).graph.get_session_options().intra_op_num_threads == 2
    with pytest.raises(UserError, match="threads is 0"):
        Package.open(copy, threads=0)


def test_the_settings_of_a_target_reach_the_session(copy: Path) -> None:
    name = "session.use_device_allocator_for_initializers"
    edit(copy, session={"providers": ["CPUExecutionProvider"], "config": {name: "1"}})
    assert Package.open(copy).graph.get_session_options().get_session_config_entry(name) == "1"


def test_a_graph_of_another_name_is_refused(copy: Path) -> None:
    with pytest.raises(UserError, match=r"no graph 'nonsense\.onnx'; there is model\.onnx$"):
        Package.open(copy, graph="nonsense.onnx")


def test_a_provider_that_is_absent_is_refused(copy: Path) -> None:
    with pytest.raises(UserError, match=r"no FastExecutionProvider; it has .*CPUExecution"):
        _ = Package.open(copy, providers=["FastExecutionProvider"]).graph


def test_a_manifests_providers_are_a_preference(copy: Path) -> None:
    edit(copy, session={"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]})
    assert Package.open(copy).graph.get_providers() == ["CPUExecutionProvider"]
    edit(copy, session={"providers": ["CUDAExecutionProvider"]})
    with pytest.raises(UserError, match=r"no CUDAExecutionProvider; it has .*CPUExecution"):
        _ = Package.open(copy).graph


def test_a_graph_that_does_not_load_is_one_line(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"not a graph")
    seal(copy)
    with pytest.raises(UserError, match="cannot load the graph") as raised:
        _ = Package.open(copy).graph
    assert "\n" not in str(raised.value)


def test_no_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    seal(copy)
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


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "report.json", "LICENSE"])
def test_what_no_application_reads_may_change_or_go(copy: Path, name: str) -> None:
    (copy / name).write_text("as exported")
    seal(copy)
    with (copy / name).open("a") as stream:
        stream.write("and a line more")
    assert Package.open(copy).graph
    assert check_files(copy) == [f"{name}: 26 bytes instead of 11"]  # verify says so all the same
    (copy / name).unlink()
    assert Package.open(copy).graph
    assert check_files(copy) == [f"{name}: missing"]


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.onnx", "model.onnx.data"])
def test_a_link_out_of_the_package_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).rename(tmp_path / name)
    (copy / name).symlink_to(tmp_path / name)
    assert f"{name}: a link out of the package" in one_line_error(copy)
    assert check_files(copy) == [
        f"{name}: a link out of the package; copy the package with its files (cp -rL)"
    ]


def test_links_within_and_the_hubs_cache_are_taken(copy: Path, tmp_path: Path) -> None:
    (copy / "model.onnx.data").rename(copy / "bytes")
    (copy / "model.onnx.data").symlink_to("bytes")
    assert Package.open(copy).graph
    blobs, revision = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    revision.mkdir(parents=True)
    for file in copy.iterdir():
        shutil.copy(file, blobs / f"hash-{file.name}")
        (revision / file.name).symlink_to(f"../../blobs/hash-{file.name}")
    assert Package.open(revision).graph
    assert check_files(revision) == []


def test_a_pipe_is_no_file(copy: Path) -> None:
    (copy / "config.json").unlink()
    os.mkfifo(copy / "config.json")
    assert "config.json: missing" in one_line_error(copy)  # and does not wait for ever
    (copy / MANIFEST).unlink()
    os.mkfifo(copy / MANIFEST)
    assert "not a package" in one_line_error(copy)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (("vocab_size",), 271, "vocab_size is 271, but model.onnx has 272"),
        (("kv", "num_kv_heads"), 4096, "kv.num_kv_heads is 4096, but model.onnx has 2"),
        (("kv", "head_dim"), 4096, "kv.head_dim is 4096, but model.onnx has 16"),
        (("kv", "dtype"), "int8", "kv.dtype is tensor(int8), but model.onnx has tensor(float)"),
        (("kv", "layers"), [{"window": 8, "windowed": True}], "number of kv.layers is 1, but"),
    ],
)
def test_the_graph_is_held_to_the_manifest(
    copy: Path, at: tuple[str, ...], value: Any, words: str
) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    place = content
    for name in at[:-1]:
        place = place[name]
    place[at[-1]] = value
    (copy / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        _ = Package.open(copy).graph
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {}}', '{"version": "1.0"}', "\x00", ""])
def test_a_damaged_tokenizer_is_one_line(copy: Path, text: str) -> None:
    (copy / "tokenizer.json").write_text(text)
    seal(copy)
    with pytest.raises(
        UserError, match=r"tokenizer\.json: cannot be read as a tokenizer"
    ) as raised:
        _ = Package.open(copy).tokenizer
    assert "\n" not in str(raised.value)


def test_fields_the_caller_gives_win_over_faults_of_the_file(copy: Path) -> None:
    (copy / "generation_config.json").write_text('{"top_p": 0, "temperature": "0.7"}')
    seal(copy)
    package = Package.open(copy)
    assert package.sampling_with(top_p=0.5, temperature=0.0).top_p == 0.5
    with pytest.raises(UserError, match=r"generation_config\.json: temperature is \"0\.7\""):
        _ = package.sampling


def test_a_cache_that_does_not_fit_is_one_line(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(batch, "make_buffer", full)
    with pytest.raises(UserError, match="the KV cache of 1 x 256 tokens does not fit into memory"):
        Session(package)


@pytest.mark.parametrize("depth", [100, 400, 900, 5000, 200_000])
def test_a_field_that_nests_deeply_is_passed_over_or_one_line(copy: Path, depth: int) -> None:
    """900 levels are JSON to Python, and were too deep for who looked into them."""
    text = (copy / MANIFEST).read_text().rstrip().removesuffix("}")
    (copy / MANIFEST).write_text(f'{text}, "more": {"[" * depth}{"]" * depth}}}')
    if depth <= 900:
        assert Package.open(copy).manifest.name
        return
    with pytest.raises(UserError, match="nested too deeply") as caught:
        Package.open(copy)
    assert len(str(caught.value).splitlines()) == 1
