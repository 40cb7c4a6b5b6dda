"""The CPU's table of each release, held to that release: its schemas, its loader, its answers.

Releases come by name, as tests/installed.py says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import Options
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.target import Target, get_target
from tests.conftest import DEMO, ROOT, DemoPackage
from tests.installed import installed
from tests.targets.answers import answers as ask
from tests.targets.schemas import DOMAIN, schemas

pytestmark = pytest.mark.slow

# The first release that each table is for, and of 1.24 the one that React Native apps ship.
RELEASES = {"1.31": "1.31.0", "1.29": "1.29.0", "1.27": "1.27.0", "1.24": "1.24.3"}
FILE = DEMO / "evaluation" / "questions.jsonl"
QUESTIONS = 12
LOAD = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"


def under(release: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """This Python with another onnxruntime."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{installed('onnxruntime', release)}{os.pathsep}{ROOT}",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def answers(package: Path, release: str) -> list[dict[str, Any]]:
    done = under(release, "-m", "tests.targets.answers", package, FILE, QUESTIONS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["onnxruntime"] == release
    return found["replies"]


@cache
def expected(package: Path) -> list[dict[str, Any]]:
    """A package's answers on this process's release."""
    found = ask(Package.open(package, threads=1), FILE, QUESTIONS)
    assert found["onnxruntime"] not in RELEASES.values()
    return json.loads(json.dumps(found["replies"]))


def export_for(runtime: str, preset: str, output: Path) -> Path:
    options = Options(get_target("cpu", runtime), Quantization.parse(preset, ()))
    export(open_checkpoint(str(DEMO)), options, output, lambda stage, done, total: None)
    return output


def unknown(target: Target, known: dict[str, Any]) -> list[str]:
    """What of a table's contrib operators a release does not know."""
    found = []
    for (domain, op), kernel in target.kernels.items():
        if domain != DOMAIN:
            continue
        known_here = known[op]
        # `axis` and `stash_type` come with the norm this operator is made of; nodes have neither.
        names = set(kernel.attributes) - {"axis", "stash_type"}
        found += [f"{op} {name}" for name in names - set(known_here["attributes"])]
        if kernel.inputs > known_here["inputs"]:
            found.append(f"{op} input {known_here['inputs']}")
        if "tensor(float)" not in known_here["types"]:
            found.append(f"{op} float")
    return sorted(found)


def test_every_table_has_a_release_to_be_tested_on() -> None:
    assert set(RELEASES) == {table.min_runtime for table in get_target("cpu").older}
    assert get_target("cpu", "1.30") is get_target("cpu", "1.29.1")


@pytest.mark.parametrize("table", RELEASES)
def test_a_release_knows_all_that_its_table_says(table: str) -> None:
    done = under(RELEASES[table], ROOT / "tests" / "targets" / "schemas.py")
    assert done.returncode == 0, done.stderr
    known = json.loads(done.stdout)
    assert unknown(get_target("cpu", table), known) == []
    assert unknown(get_target("cpu"), known) != []


@pytest.mark.parametrize("release", [*RELEASES.values(), "1.30.0"])
def test_a_release_computes_with_the_gain_and_limit_it_is_given(release: str) -> None:
    """Not with the published models', as CUDA's kernels did (microsoft/onnxruntime#28738)."""
    done = under(release, ROOT / "tests" / "targets" / "swiglu.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["onnxruntime"] == release
    assert max(found["errors"].values()) < 0.02  # 8-bit activations; without them 3e-7
    assert found["published"] > 0.1  # what a kernel would be off by that does not read them


def test_the_newest_release_knows_all_that_its_table_says() -> None:
    assert unknown(get_target("cpu"), schemas()) == []


@pytest.mark.parametrize(
    ("table", "preset"), [*((table, "int4") for table in RELEASES), ("1.24", "int8")]
)
def test_a_package_for_a_release_gives_the_newest_ones_answers_there(
    table: str, preset: str, demo_package: DemoPackage, tmp_path: Path
) -> None:
    package = export_for(table, preset, tmp_path / "package")
    manifest = json.loads((package / "manifest.json").read_text())
    assert manifest["min_runtime"] == table
    assert answers(package, RELEASES[table]) == expected(demo_package(preset))


def test_a_package_for_a_newer_release_does_not_load(demo_package: DemoPackage) -> None:
    done = under("1.24.3", "-c", LOAD, demo_package("int4") / "model.onnx")
    assert done.returncode != 0
    assert "GroupQueryAttention" in done.stderr and "INVALID_GRAPH" in done.stderr


def test_a_release_too_old_for_any_package_is_told_in_one_line(tmp_path: Path) -> None:
    package = tmp_path / "package"
    command = [
        "-m",
        "gptoss_onnx.cli",
        "export",
        str(DEMO),
        "--min-runtime",
        "1.10",
        "--output",
        str(package),
    ]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    line = (
        "Error: cpu on ONNX Runtime 1.10: packages can be for 1.32, 1.31, 1.29, 1.27, 1.24 or newer"
    )
    assert (done.returncode, done.stderr) == (1, f"{line}\n")
    assert not package.exists()
