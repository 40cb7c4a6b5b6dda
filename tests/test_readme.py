"""The README's lines work as they are written: what to install, and the three lines after it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, DemoPackage

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text(encoding="utf-8")


def row(language: str) -> tuple[list[str], str]:
    """Lines to install and lines of code in the first table's row of `language`."""
    (cells,) = (
        line.split(" | ") for line in README.splitlines() if line.startswith(f"| {language}")
    )
    install, code = (re.findall(r"`([^`]+)`", cell) for cell in cells[1:3])
    return install, "\n".join(code)


def example(heading: str) -> str:
    """The first block of code below a heading."""
    return README.split(f"## {heading}\n")[1].split("```")[1].removeprefix("python\n")


@pytest.mark.parametrize("code", [row("Python")[1], example("In Python")])
def test_python(code: str, demo_package: DemoPackage, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "demo-cpu-int4").symlink_to(demo_package("int4"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
def test_node(demo_package: DemoPackage, tmp_path: Path) -> None:
    (make, install), code = row("Node")
    subprocess.run(make.split(), cwd=ROOT, check=True, capture_output=True)
    (tmp_path / "build").mkdir()
    for built in (ROOT / "build").glob("gptoss-onnx-*.tgz"):
        shutil.copy(built, tmp_path / "build")
    (tmp_path / "build" / "demo-node-int4").symlink_to(demo_package("int4", "node"))
    # Scripts of onnxruntime-node fetch a GPU's libraries.
    subprocess.run([*install.split(), "--ignore-scripts"], cwd=tmp_path, check=True)
    (tmp_path / "three_lines.mjs").write_text(code, encoding="utf-8")
    done = subprocess.run(["node", "three_lines.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_command_of_make_is_there() -> None:
    """`make` knows each target that the README names."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", README, re.MULTILINE))
    assert {"export", "chat", "test-fast"} <= named <= known


def test_nothing_is_promised_of_a_registry() -> None:
    """Neither pip nor npm knows our names: what is installed is a clone, or made from one."""
    promise = re.compile(r"(?:pip|npm) install [^\n`]*?(?<![\w/.-])gptoss-onnx(?![\w-])")
    assert promise.search("pip install 'gptoss-onnx[export]'")
    assert promise.search("npm install gptoss-onnx onnxruntime-node")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    kinds = (".py", ".ts", ".mjs", ".md", ".kt", ".swift", ".toml", "Makefile")
    files = [n for n in listed.stdout.split() if n.endswith(kinds) and n != "tests/test_readme.py"]
    assert len(files) > 200
    found = {n for n in files if promise.search((ROOT / n).read_text(encoding="utf-8"))}
    assert found == set()


def test_every_link_leads_somewhere() -> None:
    files = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert len(files) > 4
    assert [name for name in files if not (ROOT / name).exists()] == []
