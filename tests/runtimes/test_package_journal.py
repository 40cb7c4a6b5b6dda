"""An update that is killed, wherever it is: wholly old, or wholly new from the next opening on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.runtimes.manifest import MANIFEST
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.package_files import check_files
from gptoss_onnx.runtimes.package_journal import JOURNAL, WITHOUT, finish
from gptoss_onnx.runtimes.package_update import read_report, update_files, write_report
from tests.conftest import ROOT, seal

REPORT, CARD, PAGE = "report.json", "README.md", "report.html"
TEXTS = {REPORT: '{"parity": 1}', CARD: "new", PAGE: "<p>"}
# Copies of a package, each updated by a process that kills itself before its call of that number to
# the system, until one comes to the end. (The interpreter is new and has one thread, so it forks.)
KILLED = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from gptoss_onnx.runtimes.package_update import update_files
CALLS = "mkdir", "open", "fsync", "chmod", "replace", "rename", "unlink", "rmdir"
def counted(original, die_at, count=itertools.count(1)):
    def call(*given, **named):
        if next(count) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)
    return call
old, place, texts = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])
for number in itertools.count(1):
    folder = shutil.copytree(old, place / str(number))
    if not (child := os.fork()):
        for name in CALLS:
            setattr(os, name, counted(getattr(os, name), number))
        update_files(folder, texts)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
print(number)
"""


@pytest.fixture
def old(package_folder: Path, tmp_path: Path) -> Path:
    """A package with two reports; the third is new with an update."""
    folder = Path(shutil.copytree(package_folder, tmp_path / "old"))
    (folder / REPORT).write_text('{"parity": "not measured"}')
    (folder / CARD).write_text("card")
    return seal(folder)


def state(folder: Path) -> dict[str, Any]:
    """What readers see: the reports, and what the manifest has them be."""
    texts = {name: (folder / name).read_text() for name in TEXTS if (folder / name).exists()}
    return {**texts, MANIFEST: json.loads((folder / MANIFEST).read_text())}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_at_each_call(old: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(old), str(tmp_path / "copies"), repr(TEXTS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = [tmp_path / "copies" / str(number + 1) for number in range(int(done.stdout))]
    before, after = state(old), state(folders.pop())
    seen, mixed = [], 0
    for folder in folders:
        # As other languages and servers find it, before anyone goes on with it.
        assert check_files(folder) == [], folder.name
        mixed += state(folder) not in (before, after)
        Package.open(folder)
        assert state(folder) in (before, after), folder.name
        seen.append(state(folder) == after)
        assert check_files(folder) == [], folder.name
        update_files(folder, {CARD: "newer"})
        assert check_files(folder) == [] and (folder / CARD).read_text() == "newer"
        assert set(folder.glob(".*")) == set(), folder.name  # nothing is left over
    # The first are old, the last are new, and some were killed between two names indeed.
    assert seen == sorted(seen) and {*seen} == {False, True} and mixed >= 3
    assert before != after


def journal(folder: Path, **changes: str) -> Path:
    """As an update leaves it that is killed when it has happened and nothing has its name yet."""
    whole = Path(shutil.copytree(folder, folder.with_name("whole")))
    update_files(whole, TEXTS)
    place = folder / JOURNAL
    place.mkdir()
    for name in (*TEXTS, MANIFEST):
        shutil.copy2(whole / name, place / name)
    for name, text in changes.items():
        (place / name.replace("__", ".")).write_text(text)
    return place


def test_a_journal_is_finished_by_who_opens(old: Path) -> None:
    journal(old)
    Package.open(old)
    assert state(old) == state(old.with_name("whole"))
    assert not (old / JOURNAL).exists()


def test_a_report_is_added_to_what_was_cut_short(old: Path) -> None:
    journal(old)
    write_report(old, {"evaluation": 2})
    assert read_report(old) == {"parity": 1, "evaluation": 2}
    assert (old / CARD).read_text() == "new" and check_files(old) == []


def test_a_folder_that_cannot_be_written_opens(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal(old)
    before = state(old)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    Package.open(old)
    assert state(old) == before


def other_graph(place: Path, folder: Path) -> None:
    """The manifest of a journal that would have another graph run."""
    content = json.loads((place / MANIFEST).read_text())
    content["files"]["other.onnx"] = content["files"][content["graph"]]
    content["graph"] = "other.onnx"
    (place / MANIFEST).write_text(json.dumps(content))


def link(name: str, place: Path, folder: Path) -> None:
    (place / name).unlink()
    (place / name).symlink_to(folder.parent / "victim")


def link_to_the_same(place: Path, folder: Path) -> None:
    (place / REPORT).rename(folder.parent / "victim")
    (place / REPORT).symlink_to(folder.parent / "victim")


def more(name: str, place: Path, folder: Path) -> None:
    (place / name).write_text("{}")


def linked_folder(place: Path, folder: Path) -> None:
    outside = folder.parent / "outside"
    place.rename(outside)
    place.symlink_to(outside)


def without_reports(place: Path, folder: Path) -> None:
    content = json.loads((place / MANIFEST).read_text())
    content["name"] = "other"
    (place / WITHOUT).write_text(json.dumps(content))


STRANGE = {
    "another graph": other_graph,
    "a linked report": lambda *a: link(REPORT, *a),
    "a link to the right bytes": link_to_the_same,
    "a linked manifest": lambda *a: link(MANIFEST, *a),
    "a linked folder": linked_folder,
    "another name": lambda *a: more("model.onnx", *a),
    "a config": lambda *a: more("config.json", *a),
    "other bytes": lambda *a: more(REPORT, *a),
    "a manifest that is none": lambda *a: more(MANIFEST, *a),
    "another first manifest": without_reports,
    "no manifest": lambda place, _: (place / MANIFEST).unlink(),
    "a folder in it": lambda place, _: (place / "sub").mkdir(),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_nothing_is_taken_from_a_strangers_journal(old: Path, change: Any) -> None:
    (old.parent / "victim").write_text("untouched")
    change(journal(old), old)
    before, victim = state(old), (old.parent / "victim").read_text()
    outside = {p: p.read_bytes() for p in (old.parent / "outside").glob("*")}
    Package.open(old)
    assert state(old) == before
    update_files(old, {CARD: "mine"})  # which removes it
    assert check_files(old) == [] and (old / CARD).read_text() == "mine"
    assert not os.path.lexists(old / JOURNAL)
    assert (old.parent / "victim").read_text() == victim
    assert {p: p.read_bytes() for p in (old.parent / "outside").glob("*")} == outside


def test_canary_the_same_journal_unchanged_is_taken(old: Path) -> None:
    journal(old)
    before = state(old)
    finish(old)
    assert state(old) != before


def test_reports_alone_are_updated(old: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx: reports alone"):
        update_files(old, {"model.onnx": ""})
