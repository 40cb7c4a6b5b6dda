"""Imports run one way: export -> graph_passes -> runtimes.target, evaluation beside; no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

ROOMS = (
    "export",
    "graph_passes",
    "runtimes",
    "evaluation",
    "mobile",
    "cli",
    "demo",
    "tests",
    "benchmarks",
)
# What each room may import of the repository, itself aside: a module's name allows what is below.
ALLOWED = {
    "runtimes": (),
    "graph_passes": ("runtimes.target", "runtimes.errors"),
    "export": ("graph_passes", "runtimes"),
    "evaluation": ("export", "graph_passes", "runtimes"),
    "mobile": ("export", "graph_passes", "runtimes"),
}
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "export", "graph_passes")
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
    own = (name for name in imported(source) if within(name, ROOMS))
    return [name for name in own if not within(name, (room, *ALLOWED[room]))]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_run_one_way(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) > 4
    wrong = {file.name: forbidden(room, file.read_text("utf-8")) for file in files}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("runtimes", "import export.spec", ["export.spec"]),
        ("runtimes", "def f():\n    from graph_passes import mxfp4", ["graph_passes.mxfp4"]),
        ("runtimes", "if X:\n    import evaluation", ["evaluation"]),
        ("graph_passes", "from export.spec import FULL", ["export.spec.FULL"]),
        ("graph_passes", "from runtimes import package", ["runtimes.package"]),
        ("graph_passes", "import runtimes", ["runtimes"]),
        ("graph_passes", "from runtimes.target import Target", []),
        ("export", "from runtimes.package import MANIFEST\nimport numpy", []),
        (
            "export",
            "try:\n    import evaluation.parity as p\nexcept E: pass",
            ["evaluation.parity"],
        ),
        ("evaluation", "from tests.conftest import DEMO", ["tests.conftest.DEMO"]),
    ],
)
def test_the_walker_finds_what_it_should(room: str, source: str, found: list[str]) -> None:
    assert forbidden(room, source) == found


def loaded(statement: str) -> set[str]:
    """Top-level modules that a new process has after `statement`."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return set(done.stdout.split())


def test_an_application_loads_nothing_of_the_export() -> None:
    modules = loaded("import " + ", ".join(f"runtimes.{name}" for name in APPLICATION))
    assert "runtimes" in modules
    assert not modules & set(HEAVY)


def test_the_command_line_starts_light() -> None:
    assert not loaded("import cli") & set(HEAVY)


def test_loaded_sees_what_is_loaded() -> None:
    assert loaded("import export.spec, onnx") & set(HEAVY) == {"export", "onnx"}
