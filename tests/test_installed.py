"""Releases by name: complete or not there, and never a skip where they could be had."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from tests.installed import no_wheel_here, once

FILL = (sys.executable, "-c", "import sys, pathlib; pathlib.Path(sys.argv[1], 'a').touch()")
FAIL = (sys.executable, "-c", "import sys; sys.exit('no such release')")
OTHERS = "ERROR: Could not find a version (from versions: 1.31.0, 1.32.0)"
OFFLINE = "ERROR: Could not find a version (from versions: none)"


def test_a_folder_is_filled_once(tmp_path: Path) -> None:
    folder = tmp_path / "name" / "1.0"
    assert [file.name for file in once(folder, FILL).iterdir()] == ["a"]
    assert once(folder, FAIL) == folder
    assert list(folder.parent.iterdir()) == [folder]


def test_another_process_may_be_faster(tmp_path: Path) -> None:
    folder = tmp_path / "1.0"
    code = "import sys, pathlib; (pathlib.Path(sys.argv[1]).parent / '1.0').mkdir()"
    assert once(folder, (sys.executable, "-c", code)) == folder
    assert list(tmp_path.iterdir()) == [folder]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such release"):
        once(tmp_path / "1.0", FAIL)
    assert list(tmp_path.iterdir()) == []


def test_only_another_kind_of_machine_lacks_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for machine, skipped in (("x86_64", False), ("riscv64", True)):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert no_wheel_here(OTHERS) is skipped
        assert not no_wheel_here(OFFLINE)
        assert not no_wheel_here("ERROR: HTTP error 503")
