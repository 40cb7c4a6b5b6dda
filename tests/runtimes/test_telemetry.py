"""Nothing is reported home. ONNX Runtime keeps its reports in a database in the user's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, DemoPackage

LOAD = "from gptoss_onnx import Package; Package.open(sys.argv[1]).graph"
ON_DEMAND = {"ORT_DISABLE_TELEMETRY": "0"}
REFUSED = {"ORT_DISABLE_TELEMETRY": "1"}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="knows where the database is on Linux only"
)


@pytest.fixture
def run(demo_package: DemoPackage, tmp_path: Path) -> Callable[..., tuple[bool, str]]:
    """Whether a command kept a database, and what it said on stderr."""

    def run(*command: str, **wanted: str) -> tuple[bool, str]:
        # A bare environment: where a variable says CI (or GITHUB_ACTIONS, …) it keeps none unasked.
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **wanted}
        arguments = [sys.executable, *command, str(demo_package("int4"))]
        arguments += ["What does os.path.join do?"]
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return bool(list(tmp_path.rglob("onnxruntime.db"))), done.stderr

    return run


@pytest.mark.parametrize(
    "command",
    [
        ("-c", f"import sys; {LOAD}"),
        ("-c", f"import sys, gptoss_onnx, onnxruntime; {LOAD}"),
        ("-m", "gptoss_onnx.cli", "generate"),
    ],
)
@pytest.mark.parametrize(("wanted", "kept"), [({}, False), (ON_DEMAND, True)])
def test_a_database_of_reports_is_kept_only_on_demand(
    run: Callable[..., tuple[bool, str]],
    command: tuple[str, ...],
    wanted: dict[str, str],
    kept: bool,
) -> None:
    assert run(*command, **wanted) == (kept, "")


@pytest.mark.parametrize(
    ("wanted", "kept", "told"),
    [({}, True, True), (REFUSED, False, False), (ON_DEMAND, True, False)],
)
def test_a_runtime_that_was_there_first_is_told_of(
    run: Callable[..., tuple[bool, str]], wanted: dict[str, str], kept: bool, told: bool
) -> None:
    """It opened its database as it was imported, which nothing can undo."""
    found, said = run("-c", f"import onnxruntime, sys; {LOAD}", **wanted)
    assert found is kept
    assert ("import gptoss_onnx first" in said) is told
