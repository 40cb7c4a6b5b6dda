"""Nothing is reported home. ONNX Runtime keeps its reports in a database in the user's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, DemoPackage

LOAD = "import sys; from gptoss_onnx import Package; Package.open(sys.argv[1]).graph"


@pytest.mark.skipif(sys.platform != "linux", reason="knows where the database is on Linux only")
@pytest.mark.parametrize("command", [("-c", LOAD), ("-m", "gptoss_onnx.cli", "generate")])
@pytest.mark.parametrize(("wanted", "kept"), [({}, False), ({"ORT_DISABLE_TELEMETRY": "0"}, True)])
def test_a_database_of_reports_is_kept_only_on_demand(
    command: tuple[str, ...],
    wanted: dict[str, str],
    kept: bool,
    demo_package: DemoPackage,
    tmp_path: Path,
) -> None:
    # A bare environment: where a variable says CI (CI, GITHUB_ACTIONS, …) it keeps none unasked.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **wanted}
    arguments = [sys.executable, *command, str(demo_package("int4"))]
    arguments += ["What does os.path.join do?"]
    subprocess.run(arguments, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert bool(list(tmp_path.rglob("onnxruntime.db"))) is kept
