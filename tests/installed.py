"""Releases of other programs that we are held to: installed by name, at a fixed version, once.

Tests that need another release of ONNX Runtime, or a program beside it, ask here and nowhere else,
so that they always run: a release that cannot be had is a failure. Each has a folder of its own,
build/NAME/VERSION, apart from the environment that tests run in.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PIP = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:")
NPM = ("npm", "install", "--ignore-scripts", "--no-save", "--no-audit", "--no-fund")
WINDOWS = ("--platform", "win_amd64", "--python-version", "3.11")


def once(folder: Path, command: Sequence[str]) -> Path:
    """`folder`, filled by a command that takes it as its last argument, unless it is there.

    It appears when it is complete, whichever of several processes is the first.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            done = subprocess.run([*command, str(partial)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
            if not folder.exists():
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


@cache
def installed(name: str, version: str, *options: str) -> Path:
    """A folder for PYTHONPATH with a release from PyPI, without what it depends on.

    `options` are pip's, such as `WINDOWS`. A release without a wheel for this machine is skipped.
    """
    command = [*PIP, *options, f"{name}=={version}", "--target"]
    try:
        return once(ROOT / "build" / name / version, command)
    except RuntimeError as error:
        if no_wheel_here(str(error)):
            pytest.skip(f"{name} {version} has no wheel for {platform.platform()}")
        raise


def from_npm(package: str, version: str) -> Path:
    """The folder of an npm package, without what it depends on."""
    if shutil.which("npm") is None:
        pytest.skip("no npm here")
    folder = ROOT / "build" / package / version
    command = [*NPM, "--loglevel=error", f"{package}@{version}", "--prefix"]
    return once(folder, command) / "node_modules" / package


def no_wheel_here(said: str) -> bool:
    """Whether pip reached an index that has the program, but not this release for this machine.

    Linux on x86-64 has every one: what is missing there is a slip in a test.
    """
    listed = "(from versions: " in said and "(from versions: none)" not in said
    return listed and (sys.platform, platform.machine()) != ("linux", "x86_64")


def debian_mirror() -> str:
    """The archive that this machine's own apt is set up for."""
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    targets = [line.split() for line in listed.splitlines()]
    # Not its updates or its security fixes.
    found = next((uri for release, uri in targets if "-" not in release), None)
    if found is None:
        raise RuntimeError("apt on this machine knows no Debian archive")
    return found
