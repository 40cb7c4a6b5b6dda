"""What is written into a package is there whole or not at all, and on the disk before its name."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.runtimes import package_update
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.package_files import check_files
from gptoss_onnx.runtimes.package_journal import JOURNAL
from gptoss_onnx.runtimes.package_update import update_files, write_manifest, write_report
from tests.conftest import seal

REPORT = "report.json"


@pytest.fixture
def copy(package_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(package_folder, tmp_path / "copy"))
    (folder / REPORT).write_text('{"parity": "not measured"}')
    (folder / "README.md").write_text("card")
    return seal(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def listed(folder: Path) -> set[str]:
    return set(json.loads((folder / MANIFEST).read_text("utf-8"))["files"])


def test_hashed_files_are_not_read_again(copy: Path) -> None:
    content, read = json.loads((copy / MANIFEST).read_text()), []
    (copy / "sub").mkdir()
    (copy / "sub" / "a").write_bytes(b"abc")
    (copy / "b").write_bytes(b"12")
    names = ["model.onnx", "b", "sub/a"]
    write_manifest(copy, content, names, {"sub/a": "f" * 64, "model.onnx": "0" * 64}, read.append)
    assert sum(read) == 2
    written = json.loads((copy / MANIFEST).read_text())["files"]
    assert written["sub/a"] == {"size": 3, "sha256": "f" * 64}
    assert written["b"]["sha256"].startswith("6b51d431df5d7f14")  # sha256sum of "12"
    assert list(written) == sorted(names)  # what is there beside them is not the package's


def test_a_manifest_that_none_would_read_is_not_written(copy: Path) -> None:
    before = contents(copy)
    content = json.loads(before[MANIFEST])
    for change in ({"quant": "a b"}, {"session": {"providers": ["x"]}}, {"vocab_size": 0}):
        with pytest.raises(UserError, match=MANIFEST):
            write_manifest(copy, {**content, **change}, ["model.onnx"])
    assert contents(copy) == before


def test_a_report_and_its_hash(copy: Path) -> None:
    write_report(copy, {"evaluation": {"kld": 0.1}})
    assert json.loads((copy / REPORT).read_text()) == {
        "parity": "not measured",
        "evaluation": {"kld": 0.1},
    }
    assert check_files(copy) == []
    assert (copy / REPORT).stat().st_mode & 0o777 == 0o644


def test_files_that_are_not_the_packages_stay_out(copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    before = listed(copy)
    write_report(copy, {"parity": 1})
    update_files(copy, {"report.html": "<p>"})
    assert listed(copy) == before | {"report.html"}
    assert (copy / "notes.txt").read_text() == "mine"


def test_files_changed_otherwise_keep_the_hash_they_had(copy: Path) -> None:
    (copy / "README.md").write_text("drac")
    write_report(copy, {"parity": 1})
    assert check_files(copy) == ["README.md: its bytes changed: the SHA-256 is not the manifest's"]


def test_links_are_not_written_through(copy: Path, tmp_path: Path) -> None:
    """A stranger's package may have a link where a report is to be."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in (REPORT, "README.md", f".{MANIFEST}.partial"):
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(victim)
    write_report(copy, {"parity": 1})
    update_files(copy, {"README.md": "card"})
    assert victim.read_text() == "untouched"
    assert json.loads((copy / REPORT).read_text()) == {"parity": 1}
    assert not (copy / REPORT).is_symlink()


def fails_at(call: int, original: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """`original`, but the call of that number raises instead."""
    count = 0

    def wrapped(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise error
        return original(*given, **named)

    return wrapped


FULL = OSError(errno.ENOSPC, "No space left on device")
TEXTS = {REPORT: '{"parity": 1}', "README.md": "new", "report.html": "<p>"}


# Three files and two manifests are written and synced, and their folder; it gets its name, they get
# theirs, and the package's folder is synced after the first, before the last and at the end.
CALLS = {"fsync": 9, "replace": 6, "mkdir": 2, "rmdir": 1}


@pytest.mark.parametrize(
    ("name", "call"), [(n, call) for n, most in CALLS.items() for call in range(1, most + 2)]
)
def test_a_disk_that_is_full_changes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    before = contents(copy)
    monkeypatch.setattr(package_update.os, name, fails_at(call, getattr(os, name), FULL))
    if call > CALLS[name]:
        update_files(copy, TEXTS)
        return
    with pytest.raises(UserError, match=r"No space left on device.*nothing was changed") as raised:
        update_files(copy, TEXTS)
    assert "\n" not in str(raised.value)
    assert contents(copy) == before
    assert Package.open(copy)


def test_an_interruption_between_two_names_changes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copy)
    for call in range(1, 7):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fails_at(call, os.replace, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                update_files(copy, TEXTS)
        assert contents(copy) == before


def test_bytes_are_on_the_disk_before_they_have_a_name(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, int] = {}  # inode to the size it was synced with
    named: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced[found.st_ino] = found.st_size
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        found = source.stat()
        assert synced.get(found.st_ino) == found.st_size > 0, target
        named.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    update_files(copy, TEXTS)
    # All of it by one rename; then every file by its own, the manifest last.
    assert named == [JOURNAL, MANIFEST, *sorted(TEXTS), MANIFEST]
    assert copy.stat().st_ino in synced  # and then the names
    synced.clear()
    seal(copy)
    assert named[-1] == MANIFEST
    assert copy.stat().st_ino in synced
