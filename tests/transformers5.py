"""transformers 5 beside the 4 that is here: scripts run under it in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.installed import installed

RELEASES = (
    ("transformers", "5.24.0"),
    ("huggingface-hub", "1.33.0"),
    ("tokenizers", "0.23.3"),
    ("safetensors", "0.8.0"),
)


def under_transformers_5(script: Path, *arguments: str | Path, given: str = "") -> str:
    """What a script prints there; `given` is its standard input."""
    path = os.pathsep.join(str(installed(*release)) for release in RELEASES)
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([path, str(ROOT)]), "HF_HUB_OFFLINE": "1"},
        input=given,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
