"""A package is there whole or not at all, and what was there before stays until then."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss_onnx.export.staging import SPARE_BYTES, available, needed, staged
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST


def write(output: Path, *, force: bool = False, fail: BaseException | None = None) -> None:
    with staged(output, force=force) as prepare:
        folder = prepare(1)
        assert folder.parent == output.parent
        (folder / MANIFEST).write_text("new")
        if fail:
            raise fail


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / MANIFEST).write_text("old")
    return folder


def content(folder: Path) -> dict[str, str]:
    """Every file below by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_renamed_when_complete(tmp_path: Path) -> None:
    output = tmp_path / "above" / "package"
    with staged(output) as prepare:
        folder = prepare(0)
        (folder / "file").write_text("whole")
        assert not output.exists()
    assert content(tmp_path) == {"above/package/file": "whole"}
    assert output.stat().st_mode & 0o777 == 0o755
    assert os.listdir(output.parent) == ["package"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    write(tmp_path / "package")
    assert content(tmp_path) == {f"package/{MANIFEST}": "new"}


def test_a_relative_output_survives_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with staged(Path("package")) as prepare:
        monkeypatch.chdir(tmp_path / "elsewhere")
        (prepare(0) / "file").write_text("whole")
    assert content(tmp_path) == {"package/file": "whole"}


@pytest.mark.parametrize("fail", [KeyboardInterrupt(), SystemExit(1), ValueError("any")])
def test_a_failure_leaves_nothing(fail: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(fail)):
        write(tmp_path / "made" / "for it" / "package", fail=fail)
    assert os.listdir(tmp_path) == []


def test_a_folder_above_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "above").mkdir()
    with pytest.raises(KeyError):
        write(tmp_path / "above" / "below" / "package", fail=KeyError())
    assert os.listdir(tmp_path) == ["above"] and not os.listdir(tmp_path / "above")


def test_force_replaces_a_package_once_the_new_one_is_complete(old: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(old, force=True, fail=KeyboardInterrupt())
    assert content(old.parent) == {f"package/{MANIFEST}": "old"}
    write(old, force=True)
    assert content(old.parent) == {f"package/{MANIFEST}": "new"}
    assert os.listdir(old.parent) == ["package"]


def test_a_failing_rename_puts_the_old_package_back(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(UserError, match="cannot be written"):
        write(old, force=True)
    assert content(old.parent) == {f"package/{MANIFEST}": "old"}
    assert os.listdir(old.parent) == ["package"]


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_folder(path: Path) -> None:
    path.mkdir()
    a_file(path / "note")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", [a_file, a_folder, a_dangling_link])
def test_what_is_no_package_is_never_replaced(
    make: Callable[[Path], None], force: bool, tmp_path: Path
) -> None:
    make(tmp_path / "package")
    before = content(tmp_path)
    with pytest.raises(UserError, match="choose another --output"):
        write(tmp_path / "package", force=force)
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == ["package"]


def test_a_package_needs_force(old: Path) -> None:
    with pytest.raises(UserError, match="use --force"):
        write(old)
    assert content(old) == {MANIFEST: "old"}


def test_space_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(free=SPARE_BYTES + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with staged(tmp_path / "fits") as prepare:
        prepare(1000)
    with (
        pytest.raises(UserError, match="are free") as caught,
        staged(tmp_path / "package") as prepare,
    ):
        prepare(1001)
    # 64 MiB and 1001 bytes do not fit into 64 MiB and 1000.
    assert "67.2 MB are needed, 67.2 MB of them for all that is no weight" in str(caught.value)
    assert "67.1 MB are free" in str(caught.value)
    assert os.listdir(tmp_path) == ["fits"]


@pytest.mark.parametrize(
    ("size", "up", "down"),
    [
        (0, "0.0 MB", "0.0 MB"),
        (1, "0.1 MB", "0.0 MB"),
        (49_950_000, "50.0 MB", "49.9 MB"),
        (999_999_999, "1000.0 MB", "999.9 MB"),
        (10**9, "1.0 GB", "1.0 GB"),
        (13_760_000_001, "13.8 GB", "13.7 GB"),
    ],
)
def test_sizes_never_look_as_if_they_fitted(size: int, up: str, down: str) -> None:
    assert (needed(size), available(size)) == (up, down)


def test_a_disk_that_fills_up_is_said_in_one_line(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left"):
        write(tmp_path / "package", fail=full)
    assert os.listdir(tmp_path) == []


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync, rename = set[int](), os.fsync, Path.rename

    def watched(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def renamed(folder: Path, target: Path) -> Path:
        inside = [folder, *folder.rglob("*")]
        assert len(inside) == 4
        assert {path.stat().st_ino for path in inside} <= synced
        return rename(folder, target)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(Path, "rename", renamed)
    with staged(tmp_path / "package") as prepare:
        folder = prepare(0)
        (folder / "sub").mkdir()
        for name in (MANIFEST, "sub/data"):
            (folder / name).write_text("{}")
    assert tmp_path.stat().st_ino in synced
