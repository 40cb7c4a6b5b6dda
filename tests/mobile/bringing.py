"""What an app does before it talks, the same of each language: it brings a package and loads it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mobile.package_server import PackageServer, serve

# What each language's core is held to, with a package: fewer would be vectors that it passed over.
COMPARISONS = 1923


@dataclass(frozen=True)
class App:
    """A language's core; `run` gives arguments to its program Bring."""

    run: Callable[..., subprocess.CompletedProcess[str]]

    def bring(self, source: object, folder: Path, most: int | None = None) -> list[str]:
        """What it says: whether the folder is complete before and after, then how it ended."""
        done = self.run(source, folder, *([] if most is None else [most]))
        assert done.stderr == "" and done.returncode in (0, 2)
        return done.stdout.splitlines()


def add(server: PackageServer, name: str, file: dict[str, Any]) -> None:
    """Put a file into the manifest."""
    manifest = json.loads(server.files["manifest.json"])
    manifest["files"][name] = file
    server.files["manifest.json"] = json.dumps(manifest).encode()


def entry(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


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


class Bringing:
    """Tests for a class of each language's own, beside a fixture `app`."""

    @pytest.fixture
    def server(self, android: Path) -> Iterator[PackageServer]:
        with serve(android) as server:
            yield server

    def test_a_package_comes_whole_and_goes_on_where_it_stopped(
        self, app: App, server: PackageServer, android: Path, tmp_path: Path
    ) -> None:
        here = tmp_path / "package"
        told = app.bring(server.url, here, 5_000_000)
        assert told[:2] == ["complete: false"] * 2 and told[2].startswith("stopped; ")
        assert not (here / "manifest.json").exists() and not (here / "model.ort").exists()
        there = (here / "model.ort.partial").stat().st_size
        server.asked.clear()
        assert app.bring(server.url, here) == ["complete: false", "complete: true", "done"]
        assert ("model.ort", f"bytes={there}-") in server.asked
        assert {p.name: p.read_bytes() for p in here.iterdir()} == server.files

    def test_what_is_right_is_not_asked_for_again(
        self, app: App, server: PackageServer, android: Path, tmp_path: Path
    ) -> None:
        here = shutil.copytree(android, tmp_path / "package")
        (here / "config.json").write_bytes(b"{}")
        (here / "manifest.json").write_text("{")  # cut short while it was written
        assert app.bring(server.url, here) == ["complete: false", "complete: true", "done"]
        assert [name for name, _ in server.asked] == ["manifest.json", "config.json"]

    def test_a_file_that_was_not_yet_checked_is_not_asked_for_again(
        self, app: App, server: PackageServer, tmp_path: Path
    ) -> None:
        (tmp_path / "model.ort.partial").write_bytes(server.files["model.ort"])
        assert app.bring(server.url, tmp_path)[2] == "done"
        assert "model.ort" not in [name for name, _ in server.asked]

    def test_until_a_newer_package_is_whole_the_folder_is_none(
        self, app: App, server: PackageServer, android: Path, tmp_path: Path
    ) -> None:
        here = shutil.copytree(android, tmp_path / "package")
        server.files["model.ort"] = other = bytes(len(server.files["model.ort"]))
        add(server, "model.ort", entry(other))
        told = app.bring(server.url, here, 2_000_000)
        assert told[:2] == ["complete: true", "complete: false"]

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            ("another byte", "model.ort: what came is not what the manifest says: try again"),
            ("one byte more", "model.ort: what came is not what the manifest says: try again"),
            ("cut", "the package did not come: "),
            ("missing", "model.ort: the server answered 404"),
            ("silent", "the package did not come: "),
        ],
    )
    def test_a_server_that_fails_is_told_in_one_line(
        self, app: App, server: PackageServer, tmp_path: Path, fault: str, told: str
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
        before, after, line = app.bring(server.url, tmp_path)
        assert (before, after) == ("complete: false",) * 2
        assert line.removeprefix(f"{server.url}: ").startswith(told)
        assert not (tmp_path / "manifest.json").exists() and not (tmp_path / name).exists()
        kept = tmp_path / "model.ort.partial"
        assert (kept.stat().st_size if kept.exists() else 0) == (1_000_000 if fault == "cut" else 0)

    @pytest.mark.parametrize("name", ["../x", "/x", "a//x", ".", "manifest.json"])
    def test_no_name_leads_out_of_the_folder(
        self, app: App, server: PackageServer, tmp_path: Path, name: str
    ) -> None:
        add(server, name, entry(b""))
        told = app.bring(server.url, tmp_path / "package")
        assert told[2] == f"manifest.json: {name}: no name of a package's file"
        assert [asked for asked, _ in server.asked] == ["manifest.json"]
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    @pytest.mark.parametrize("text", ["<html>", "[]", "{}", '{"format": 1}', '{"format": 2}'])
    def test_what_is_no_manifest_is_told_in_one_line(
        self, app: App, server: PackageServer, tmp_path: Path, text: str
    ) -> None:
        server.files["manifest.json"] = text.encode()
        told = app.bring(server.url, tmp_path)
        assert len(told) == 3 and told[2].startswith("manifest.json: ")

    @pytest.mark.parametrize(
        "what", [*BAD, "model.ort", "tokenizer.json", "config.json", "missing"]
    )
    def test_a_package_that_cannot_be_loaded_is_told_in_one_line(
        self, app: App, android: Path, tmp_path: Path, what: str
    ) -> None:
        package = shutil.copytree(android, tmp_path / "package")
        if what in BAD:
            members, told = BAD[what]
            manifest = json.loads((package / "manifest.json").read_text())
            kv = {**manifest["kv"], **members.get("kv", {})}
            (package / "manifest.json").write_text(json.dumps({**manifest, **members, "kv": kv}))
        elif what == "missing":
            (package / "config.json").unlink()
            told = "config.json is missing or cut short: get the package again"
        else:
            (package / what).write_bytes(b" " * (package / what).stat().st_size)
            told = f"{what}: "
        done = app.run(package)
        assert done.returncode == 2, done.stderr
        assert done.stdout.startswith(told) and done.stdout.count("\n") == 1
