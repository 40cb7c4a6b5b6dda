"""The Kotlin core, compiled as Gradle would and held to the vectors and to a package's answers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO, ROOT
from tests.mobile.kotlin import ANDROID, compile_kotlin, native_libraries, run_kotlin
from tests.mobile.package_server import PackageServer, serve

CHECK = "gptoss.check.CheckKt"
VECTORS = ROOT / "tests" / "vectors"


@pytest.fixture(scope="module")
def core(aar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of the core and its checks."""
    out = tmp_path_factory.mktemp("core")
    done = compile_kotlin([ANDROID / "core" / "src"], [aar], out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_libraries(tmp_path_factory.mktemp("native") / "lib")


def test_the_core_holds_to_the_vectors_and_gives_the_demos_answers(
    core: Path, aar: Path, native: Path, android: Path
) -> None:
    done = run_kotlin(CHECK, [core, aar], VECTORS, DEMO, android, native=native)
    assert done.stdout == "872 passed, 0 failed\n", done.stdout + done.stderr
    assert done.returncode == 0


SLIPS = {
    "Sampler.kt": ("return z xor (z shr 31)", "return z xor (z shr 30)", "splitmix64 "),
    "Tokenizer.kt": ("if (merged < best)", "if (merged <= best)", "encode "),
    "StreamParser.kt": ("LONGEST_HEADER = 256", "LONGEST_HEADER = 255", "events "),
}


@pytest.fixture(scope="module")
def slipped(core: Path, aar: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the check says of a core with all three, each of which only its own vectors tell."""
    sources, out = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("slipped")
    for file, (right, wrong, _) in SLIPS.items():
        text = (ANDROID / "core/src/main/kotlin/gptoss" / file).read_text()
        assert text.count(right) == 1
        (sources / file).write_text(text.replace(right, wrong))
    done = compile_kotlin([sources], [core, aar], out, f"-Xfriend-paths={core}")
    assert done.returncode == 0, done.stderr
    done = run_kotlin(CHECK, [out, core, aar], VECTORS, DEMO)
    assert done.returncode == 1
    return done.stdout.splitlines()


@pytest.mark.parametrize("file", SLIPS)
def test_a_core_with_a_slip_does_not(slipped: list[str], file: str) -> None:
    assert any(line.startswith(SLIPS[file][2]) for line in slipped)


@pytest.fixture
def server(android: Path) -> Iterator[PackageServer]:
    with serve(android) as server:
        yield server


def bring(core: Path, aar: Path, *arguments: object) -> list[str]:
    """What the app is told: whether the folder is complete before and after, then how it ended."""
    done = run_kotlin("gptoss.check.BringKt", [core, aar], *arguments)
    assert done.stderr == "" and done.returncode in (0, 2)
    return done.stdout.splitlines()


def change(server: PackageServer, **members: Any) -> None:
    """Another manifest."""
    manifest = json.loads(server.files["manifest.json"])
    server.files["manifest.json"] = json.dumps({**manifest, **members}).encode()


def entry(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_package_comes_whole_and_goes_on_where_it_stopped(
    core: Path, aar: Path, server: PackageServer, android: Path, tmp_path: Path
) -> None:
    here = tmp_path / "package"
    told = bring(core, aar, server.url, here, 5_000_000)
    assert told[:2] == ["complete: false"] * 2 and told[2].startswith("stopped; ")
    assert not (here / "manifest.json").exists() and not (here / "model.ort").exists()
    there = (here / "model.ort.partial").stat().st_size
    server.asked.clear()
    assert bring(core, aar, server.url, here) == ["complete: false", "complete: true", "done"]
    assert ("model.ort", f"bytes={there}-") in server.asked
    assert {p.name: p.read_bytes() for p in here.iterdir()} == server.files


def test_what_is_right_is_not_asked_for_again(
    core: Path, aar: Path, server: PackageServer, android: Path, tmp_path: Path
) -> None:
    here = shutil.copytree(android, tmp_path / "package")
    (here / "config.json").write_bytes(b"{}")
    (here / "manifest.json").write_text("{")  # cut short while it was written
    assert bring(core, aar, server.url, here) == ["complete: false", "complete: true", "done"]
    assert [name for name, _ in server.asked] == ["manifest.json", "config.json"]


def test_a_package_that_came_with_the_app_is_unpacked(
    core: Path, aar: Path, android: Path, tmp_path: Path
) -> None:
    asset, here = shutil.copytree(android, tmp_path / "asset"), tmp_path / "package"
    assert bring(core, aar, asset, here) == ["complete: false", "complete: true", "done"]
    assert (here / "model.ort").read_bytes() == (android / "model.ort").read_bytes()
    (asset / "manifest.json").unlink()
    assert bring(core, aar, asset, here)[2].startswith("manifest.json did not come with the app: ")


def test_until_a_newer_package_is_whole_the_folder_is_none(
    core: Path, aar: Path, server: PackageServer, android: Path, tmp_path: Path
) -> None:
    here = shutil.copytree(android, tmp_path / "package")
    server.files["model.ort"] = other = bytes(len(server.files["model.ort"]))
    files = json.loads(server.files["manifest.json"])["files"]
    change(server, files={**files, "model.ort": entry(other)})
    told = bring(core, aar, server.url, here, 2_000_000)
    assert told[:2] == ["complete: true", "complete: false"]


@pytest.mark.parametrize("fault", ["another byte", "one byte more", "cut", "missing", "silent"])
def test_a_server_that_fails_is_told_in_one_line(
    core: Path, aar: Path, server: PackageServer, tmp_path: Path, fault: str
) -> None:
    name = "model.ort"
    right = server.files[name]
    if fault == "another byte":
        server.files[name] = right[:-1] + bytes([right[-1] ^ 1])
    elif fault == "one byte more":
        server.files[name] = right + b"!"
    elif fault == "cut":
        server.cut[name] = 1_000_000
    elif fault == "missing":
        del server.files[name]
    else:
        server.silent.add(name)
    lines = {
        "another byte": "model.ort: what came is not what the manifest says: try again",
        "one byte more": "model.ort: what came is not what the manifest says: try again",
        "cut": "the package did not come: ",
        "missing": f"{server.url}: model.ort: the server answered 404",
        "silent": "the package did not come: Read timed out",
    }
    before, after, told = bring(core, aar, server.url, tmp_path)
    assert (before, after) == ("complete: false",) * 2 and told.startswith(lines[fault])
    assert not (tmp_path / "manifest.json").exists() and not (tmp_path / name).exists()
    kept = tmp_path / "model.ort.partial"
    assert (kept.stat().st_size if kept.exists() else 0) == (1_000_000 if fault == "cut" else 0)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, f"{name}: no name of a package's file") for name in ("../x", "/x", "a//x", ".")),
        ("manifest.json", "manifest.json: no name of a package's file"),
        ("x", "the package needs 95367"),
    ],
)
def test_names_and_sizes_of_a_manifest_are_not_trusted(
    core: Path, aar: Path, server: PackageServer, tmp_path: Path, name: str, told: str
) -> None:
    files = json.loads(server.files["manifest.json"])["files"]
    change(server, files={**files, name: {"size": 10**15, "sha256": "0" * 64}})
    line = bring(core, aar, server.url, tmp_path / "package")[2]
    assert line.removeprefix("manifest.json: ").startswith(told)
    assert [asked for asked, _ in server.asked] == ["manifest.json"]
    assert not list(tmp_path.rglob("*"))[1:]


@pytest.mark.parametrize("text", ["<html>", "[]", "{}", '{"format": 1}', '{"format": 2}'])
def test_what_is_no_manifest_is_told_in_one_line(
    core: Path, aar: Path, server: PackageServer, tmp_path: Path, text: str
) -> None:
    server.files["manifest.json"] = text.encode()
    told = bring(core, aar, server.url, tmp_path)
    assert len(told) == 3 and told[2].startswith("manifest.json: ")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "newer runtime": ({"min_runtime": "1.99"}, "the package needs ONNX Runtime 1.99, the app has "),
    "for a GPU": (
        {"session": {"providers": ["CUDA"], "config": {}}},
        "manifest.json: the package is not for a phone",
    ),
    "another graph": ({"graph": "../model.ort"}, "manifest.json: the package lacks its graph"),
    "float16": ({"kv": {"dtype": "float16"}}, "manifest.json: the package's KV cache is not"),
    "not in place": ({"kv": {"in_place": False}}, "manifest.json: the package's KV cache is not"),
    "no sizes": ({"files": {"model.ort": 1}}, "manifest.json: model.ort has no size"),
}


@pytest.mark.parametrize("what", [*BAD, "model.ort", "tokenizer.json", "config.json", "missing"])
def test_a_package_that_cannot_be_loaded_is_told_in_one_line(
    core: Path, aar: Path, native: Path, android: Path, tmp_path: Path, what: str
) -> None:
    package = shutil.copytree(android, tmp_path / "package")
    if what in BAD:
        members, told = BAD[what]
        manifest = json.loads((package / "manifest.json").read_text())
        for name, value in members.items():
            keep = isinstance(value, dict) and name == "kv"
            manifest[name] = {**manifest[name], **value} if keep else value
        (package / "manifest.json").write_text(json.dumps(manifest))
    elif what == "missing":
        (package / "config.json").unlink()
        told = "config.json is missing or cut short: get the package again"
    else:
        (package / what).write_bytes(b" " * (package / what).stat().st_size)
        told = f"{what}: "
    done = run_kotlin("gptoss.check.BringKt", [core, aar], package, native=native)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(told) and done.stdout.count("\n") == 1
