"""What an app does before it talks, the same of each language: it brings a package and loads it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import check_manifest
from tests.mobile.package_server import PackageServer, serve

# What each language's core is held to, with a package: fewer would be vectors that it passed over.
COMPARISONS = 3491


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


CPU = {"providers": ["CPUExecutionProvider"]}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "newer runtime": (
        {"min_runtime": "1.99"},
        "manifest.json: model.ort needs ONNX Runtime 1.99 or newer, the app has ",
    ),
    "for a GPU": (
        {"session": {"providers": ["CUDAExecutionProvider"]}},
        "manifest.json: model.ort is made for CUDAExecutionProvider: export it with ",
    ),
    "another graph": ({"graph": "../model.ort"}, 'manifest.json: graph is "../model.ort": '),
    "no graph": ({"graph": "other.ort"}, "manifest.json: graph is other.ort: it must be among "),
    "float16": ({"kv": {"dtype": "float16"}}, "manifest.json: model.ort has a KV cache of float16"),
    "not in place": ({"kv": {"in_place": False}}, "manifest.json: model.ort makes its KV cache "),
    # What the graph contradicts, which only its own inputs and outputs say.
    "another head size": (
        {"kv": {"head_dim": 65}},
        "manifest.json: kv.head_dim is 65, but model.ort has 64: get the package again",
    ),
    "more heads": (
        {"kv": {"num_kv_heads": 99}},
        "manifest.json: kv.num_kv_heads is 99, but model.ort has 2: get ",
    ),
    "float KV": (
        {"kv": {"dtype": "float32"}},
        "manifest.json: kv.dtype is float32, but model.ort has int8: get ",
    ),
    "a layer fewer": (
        {"kv": {"layers": [{"windowed": False, "window": None}] * 5}},
        "manifest.json: the number of kv.layers is 5, but model.ort has 6: get ",
    ),
    "more tokens": (
        {"vocab_size": 5000},
        "manifest.json: vocab_size is 5000, but model.ort has 4096: get ",
    ),
    "no sizes": ({"files": {"model.ort": 1}}, "manifest.json: files.model.ort is 1: it must be "),
    "a file written": (
        {"session": {**CPU, "optimized_model_filepath": "/tmp/x.onnx"}},
        "manifest.json: session.optimized_model_filepath is not known: ",
    ),
    "another folder read": (
        {"session": {**CPU, "config": {"ep.context_file_path": "/tmp/x"}}},
        "manifest.json: session.config.ep.context_file_path is not known: ",
    ),
}
# A generation_config.json: how the app refuses it, or None.
CONFIGS: dict[str, str | None] = {
    '{"top_k": -1, "temperature": null, "eos_token_id": null}': None,
    '{"do_sample": true, "top_k": 20.0, "eos_token_id": [1, 2]}': None,
    '{"temperature": "0.7"}': 'temperature is "0.7": it must be a number, 0 or more; ',
    '{"temperature": true}': "temperature is true: it must be a number, 0 or more; ",
    '{"temperature": 1e999}': "",
    '{"top_p": 0}': "top_p is 0: it must be a number above 0 and at most 1; ",
    '{"top_k": 1.5}': "top_k is 1.5: it must be a whole number; ",
    '{"top_k": -2}': "top_k is -2: it must be a whole number; ",
    '{"min_p": [1]}': "min_p is a list: it must be a number from 0 to 1; ",
    '{"do_sample": 1}': "do_sample is 1: it must be true or false; ",
    '{"eos_token_id": []}': "eos_token_id is a list: it must be a token's id or a list of them; ",
    '{"eos_token_id": [1, "2"]}': "eos_token_id is a list: it must be ",
    '{"eos_token_id": -1}': "eos_token_id is -1: it must be ",
    '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}": "",
    '{"a": 01}': "",
    '{"a": "\\x"}': "",
    "[]": "",
}


# What a field of a manifest may turn into; Ellipsis: it is gone.
ODD: list[Any] = [..., None, True, -1, 0, 1.5, 1e300, 2**70, "", "x", "../x", "a\nb", "x" * 5000]
ODD += [[], {}, [[]], {"a": {"b": -1}}, json.loads("[" * 60 + "]" * 60)]


def mutated(manifest: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """One field of it, at any depth, is another."""
    made = json.loads(json.dumps(manifest))
    place, value = made, draw.choice(ODD)
    while True:
        step = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[step], dict | list) and place[step] and draw.random() < 0.8:
            place = place[step]
        elif value is ...:
            del place[step]
            return made
        else:
            place[step] = value
            return made


def taken(manifest: dict[str, Any]) -> bool:
    """As Python has it."""
    try:
        check_manifest(manifest, "manifest.json")
    except UserError:
        return False
    return True


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

    @pytest.mark.parametrize(
        "name", ["../x", "/x", "a//x", ".", "manifest.json", "..\\x", "%2e%2e/x", "https://evil/x"]
    )
    def test_no_name_leads_out_of_the_folder(
        self, app: App, server: PackageServer, tmp_path: Path, name: str
    ) -> None:
        add(server, name, entry(b""))
        told = app.bring(server.url, tmp_path / "package")
        assert told[2].startswith("manifest.json: files: a name is ")
        assert [asked for asked, _ in server.asked] == ["manifest.json"]
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_a_manifest_with_any_field_changed_is_taken_or_refused_as_in_python(
        self, app: App, android: Path, tmp_path: Path
    ) -> None:
        manifest, draw = json.loads((android / "manifest.json").read_text()), random.Random(11)
        made = [mutated(manifest, draw) for _ in range(1500)]
        (tmp_path / "lines").write_text("".join(json.dumps(one) + "\n" for one in made))
        done = app.run("manifests", tmp_path / "lines")
        assert done.stderr == "" and done.returncode == 0
        *verdicts, end = done.stdout.splitlines()
        assert end == "done" and 200 < verdicts.count("taken") < 1300
        wrong = [
            (verdict, one)
            for verdict, one in zip(verdicts, made, strict=True)
            if verdict.startswith("taken") != taken(one)
        ]
        assert wrong == []

    def test_no_link_leads_out_of_the_folder(
        self, app: App, server: PackageServer, tmp_path: Path
    ) -> None:
        here, outside = tmp_path / "package", tmp_path / "outside"
        here.mkdir()
        outside.write_text("mine")
        for name in ("model.ort", "model.ort.partial"):
            (here / name).symlink_to(outside)
            told = app.bring(server.url, here)
            assert told[2].startswith(f"{name} is a link out of the package: ")
            (here / name).unlink()
        assert outside.read_text() == "mine"

    def test_a_manifest_without_end_is_not_read_to_it(
        self, app: App, server: PackageServer, tmp_path: Path
    ) -> None:
        server.files["manifest.json"] += b" " * (17 << 20)
        told = app.bring(server.url, tmp_path)
        assert told[2].startswith("manifest.json: ") and not (tmp_path / "manifest.json").exists()

    def test_what_no_app_reads_may_be_changed_or_gone(
        self, app: App, android: Path, tmp_path: Path
    ) -> None:
        package = shutil.copytree(android, tmp_path / "package")
        with (package / "README.md").open("a") as readme:
            readme.write("A line of mine.\n")
        (package / "required_operators.config").unlink()
        done = app.run(package)
        assert done.stdout == "done\n", done.stderr

    @pytest.mark.parametrize("text", CONFIGS, ids=lambda text: text[:30])
    def test_a_generation_config_is_followed_or_told_in_one_line(
        self, app: App, android: Path, tmp_path: Path, text: str
    ) -> None:
        package = shutil.copytree(android, tmp_path / "package")
        (package / "generation_config.json").write_text(text)
        manifest = json.loads((package / "manifest.json").read_text())
        manifest["files"]["generation_config.json"] = entry(text.encode())
        (package / "manifest.json").write_text(json.dumps(manifest))
        done, told = app.run(package), CONFIGS[text]
        if told is None:
            assert done.stdout == "done\n", done.stderr
        else:
            assert done.stdout.startswith(f"generation_config.json: {told}"), done.stderr
            assert done.returncode == 2 and done.stdout.count("\n") == 1

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
