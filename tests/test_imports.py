"""Imports run one way: export -> graph_passes -> runtimes.target, evaluation beside; no torch.

Every import of ours goes through the one name that is installed, `gptoss_onnx`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

NAME = "gptoss_onnx"
INSTALLED = ("export", "graph_passes", "runtimes", "evaluation", "tuning", "mobile", "assistant")
REPOSITORY = (NAME, *INSTALLED, "demo", "tests", "benchmarks")  # what a clone has at its top
# What each room may import of the repository, itself aside: a module's name allows what is below.
ALLOWED = {
    "runtimes": (),
    "graph_passes": ("runtimes.target", "runtimes.errors"),
    "export": ("graph_passes", "runtimes"),
    "evaluation": ("export", "graph_passes", "runtimes"),
    "tuning": ("evaluation", "export", "graph_passes", "runtimes"),
    "mobile": ("export", "graph_passes", "runtimes"),
    "assistant": ("runtimes",),
}
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers")
HEAVY += (f"{NAME}.export", f"{NAME}.graph_passes")
APPLICATION = ("chat", "generation", "package", "bench", "answer", "console")


def imported(source: str) -> Iterator[str]:
    """Every module that `source` imports anywhere, and each name from one, dotted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def forbidden(room: str, source: str) -> list[str]:
    """Imports of `source`, a file of `room`, that run against the direction."""
    allowed = tuple(f"{NAME}.{below}" for below in (room, *ALLOWED[room]))
    own = (name for name in imported(source) if within(name, REPOSITORY))
    return [name for name in own if not within(name, allowed)]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_run_one_way(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) > 4
    wrong = {file.name: forbidden(room, file.read_text("utf-8")) for file in files}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("runtimes", f"import {NAME}.export.spec", [f"{NAME}.export.spec"]),
        (
            "runtimes",
            f"def f():\n    from {NAME}.graph_passes import mxfp4",
            [f"{NAME}.graph_passes.mxfp4"],
        ),
        ("runtimes", f"if X:\n    import {NAME}.evaluation", [f"{NAME}.evaluation"]),
        ("runtimes", "from runtimes import package", ["runtimes.package"]),
        ("runtimes", f"from {NAME} import Package", [f"{NAME}.Package"]),
        ("graph_passes", f"from {NAME}.export.spec import FULL", [f"{NAME}.export.spec.FULL"]),
        ("graph_passes", f"from {NAME}.runtimes import package", [f"{NAME}.runtimes.package"]),
        ("graph_passes", f"import {NAME}.runtimes", [f"{NAME}.runtimes"]),
        ("graph_passes", f"from {NAME}.runtimes.target import Target", []),
        ("export", f"from {NAME}.runtimes.package import MANIFEST\nimport numpy", []),
        (
            "export",
            f"try:\n    import {NAME}.evaluation.parity as p\nexcept E: pass",
            [f"{NAME}.evaluation.parity"],
        ),
        ("evaluation", "from tests.conftest import DEMO", ["tests.conftest.DEMO"]),
    ],
)
def test_the_walker_finds_what_it_should(room: str, source: str, found: list[str]) -> None:
    assert forbidden(room, source) == found


def loaded(statement: str) -> set[str]:
    """What a new process has loaded after `statement`: top-level modules, and rooms of ours."""
    code = f"import sys; {statement}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    names = done.stdout.split()
    return {n.split(".")[0] for n in names} | {".".join(n.split(".")[:2]) for n in names}


def test_an_application_loads_nothing_of_the_export() -> None:
    modules = loaded("import " + ", ".join(f"{NAME}.runtimes.{name}" for name in APPLICATION))
    assert f"{NAME}.runtimes" in modules
    assert not modules & set(HEAVY)


def test_the_command_line_starts_light() -> None:
    assert not loaded(f"import {NAME}.cli") & set(HEAVY)


def test_loaded_sees_what_is_loaded() -> None:
    folders = {f"{NAME}.export", f"{NAME}.graph_passes"}
    assert loaded(f"import {NAME}.export.spec, onnx") & set(HEAVY) == {*folders, "onnx"}
