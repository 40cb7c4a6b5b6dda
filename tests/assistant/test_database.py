"""One layer over SQLite: private files, whole schemas, and every failure in one line of words."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from gptoss_onnx.assistant.database import Step, StorageError, data_folder
from tests.assistant.notes import Notes
from tests.assistant.storage_processes import (
    assert_sound,
    finish,
    locked,
    mode,
    on_small_disk,
    start,
)

pytestmark = pytest.mark.filterwarnings("error")


def only_line(error: pytest.ExceptionInfo[StorageError]) -> str:
    (line,) = str(error.value).splitlines()
    return line


def test_files_are_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "chmod")  # from the start, not a moment later
    before = os.umask(0)
    try:
        with Notes(tmp_path / "a" / "data") as notes:
            notes.add("one")
            files = sorted((tmp_path / "a" / "data").iterdir())
            assert [file.name.removeprefix(Notes.FILE) for file in files] == ["", "-shm", "-wal"]
            assert {mode(file) for file in files} == {0o600}
            assert mode(tmp_path / "a" / "data") == 0o700
    finally:
        os.umask(before)


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    Notes(tmp_path).close()
    (tmp_path / Notes.FILE).chmod(0o644)
    Notes(tmp_path).close()
    assert mode(tmp_path / Notes.FILE) == 0o600


def test_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_DATA", str(tmp_path / "given"))
    with Notes() as notes:
        assert notes.path == tmp_path / "given" / Notes.FILE
    monkeypatch.delenv("GPTOSS_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    assert data_folder().name == "gptoss-onnx"


def test_a_commit_is_on_the_disk(tmp_path: Path) -> None:
    with Notes(tmp_path) as notes:
        set_to = {name: notes.pragma(name) for name in ("journal_mode", "synchronous", "fullfsync")}
        assert set_to == {"journal_mode": "wal", "synchronous": 2, "fullfsync": 1}


def test_work_that_raises_stores_nothing(tmp_path: Path) -> None:
    with Notes(tmp_path) as notes:
        notes.add("one")
        with pytest.raises(KeyError):
            notes.fail_after("two")
        notes.add("three")
        assert notes.all() == ["one", "three"]


class Later(Notes):
    STEPS: ClassVar[tuple[Step, ...]] = (
        *Notes.STEPS,
        ("ALTER TABLE notes ADD COLUMN at REAL", "CREATE INDEX by_time ON notes (at)"),
    )


class Broken(Notes):
    STEPS: ClassVar[tuple[Step, ...]] = (
        *Notes.STEPS,
        ("ALTER TABLE notes ADD COLUMN at REAL", "CREATE INDEX by_time ON notes (missing)"),
    )


def test_a_new_version_takes_over_what_was_stored(tmp_path: Path) -> None:
    with Notes(tmp_path) as notes:
        notes.add("one")
    with Later(tmp_path) as later:
        assert later.all() == ["one"]
        assert later.pragma("user_version") == 2


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    Later(tmp_path).close()
    with pytest.raises(StorageError, match=r"newer gptoss-onnx \(version 2 .* update") as error:
        Notes(tmp_path)
    assert only_line(error)


def test_a_change_of_version_is_whole_or_not_there(tmp_path: Path) -> None:
    with Notes(tmp_path) as notes:
        notes.add("one")
    with pytest.raises(StorageError, match="missing"):
        Broken(tmp_path)
    with Later(tmp_path) as later:  # the column is not there yet
        assert later.all() == ["one"]


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / Notes.FILE).write_bytes(b"something else, written by somebody" * 200)
    with pytest.raises(StorageError, match="is damaged: put a backup") as error:
        Notes(tmp_path)
    assert only_line(error)


def test_a_page_that_is_damaged(tmp_path: Path) -> None:
    with Notes(tmp_path) as notes:
        for number in range(200):
            notes.add(f"{number}" * 200)
    path = tmp_path / Notes.FILE
    content = bytearray(path.read_bytes())
    content[4096 * 3 :] = b"\xff" * (len(content) - 4096 * 3)
    path.write_bytes(content)
    with Notes(tmp_path) as notes, pytest.raises(StorageError, match="is damaged"):
        notes.all()


def test_no_file_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not there"):
        Notes(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be used: Not a directory"):
        Notes(tmp_path / "file")
    (tmp_path / Notes.FILE).mkdir()
    with pytest.raises(StorageError, match="cannot be opened"):
        Notes(tmp_path)


def test_a_file_that_is_moved_away_takes_nothing(tmp_path: Path) -> None:
    with Notes(tmp_path) as notes:
        notes.add("one")
        os.rename(notes.path, tmp_path / "elsewhere")
        with pytest.raises(StorageError, match="moved or deleted while in use"):
            notes.add("two")
        with pytest.raises(StorageError, match="moved or deleted while in use"):
            notes.all()
        notes.path.touch()  # another file of this name is not it
        with pytest.raises(StorageError, match="moved or deleted while in use"):
            notes.add("three")


def test_a_locked_file(tmp_path: Path) -> None:
    with Notes(tmp_path, wait=0.2) as notes:
        notes.add("one")
        with locked(notes.path):
            with pytest.raises(StorageError, match="locked by another program: wait") as error:
                notes.add("two")
            assert only_line(error)
            assert notes.all() == ["one"]  # who reads goes on
            with pytest.raises(StorageError, match="locked by another program"):
                Later(tmp_path, wait=0.2)
        notes.add("three")
        assert notes.all() == ["one", "three"]


def test_a_locked_file_stops_no_event_loop(tmp_path: Path) -> None:
    """The lock is given up by what the loop does next; a blocked loop would not come to it."""

    async def main() -> None:
        with Notes(tmp_path, wait=60) as notes:
            with locked(notes.path) as holder:
                waiting = asyncio.create_task(notes.call(notes.add, "one"))
                for _ in range(100):
                    await asyncio.sleep(0.001)
                assert not waiting.done()
                holder.kill()
                holder.wait()
                await waiting
            assert await notes.call(notes.all) == ["one"]

    asyncio.run(main())


def test_waiting_behind_others_counts(tmp_path: Path) -> None:
    """Of many calls on a locked file each waits from when it was asked for: one wait in all."""

    async def main() -> None:
        with Notes(tmp_path, wait=1) as notes:
            with locked(notes.path):
                calls = [notes.call(notes.add, str(number)) for number in range(50)]
                async with asyncio.timeout(20):  # of 50 one after the other
                    errors = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(error) for error in errors} == {StorageError}
            assert notes.all() == []

    asyncio.run(main())


def test_calls_run_on_a_thread_of_their_own(tmp_path: Path) -> None:
    async def main() -> None:
        with Notes(tmp_path) as notes:
            threads = {notes.thread(), await notes.call(notes.thread)}
            assert len(threads) == 1
            assert threading.get_ident() not in threads

    asyncio.run(main())


def test_a_closed_one_says_so(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    notes.add("one")
    notes.close()
    notes.close()
    with pytest.raises(StorageError, match="was closed"):
        notes.add("two")
    assert [file.name for file in tmp_path.iterdir()] == [Notes.FILE]


NOTES = """
import sys
from pathlib import Path
from gptoss_onnx.assistant.database import StorageError
from tests.assistant.notes import Notes
folder = Path(sys.argv[1])
"""
AT_ONCE = f"""{NOTES}
with Notes(folder, wait=60) as notes:
    for number in range(20):
        notes.add(f"{{sys.argv[2]}} {{number}}")
"""
FULL = f"""{NOTES}
added = []
def fill(notes):
    while True:
        text = str(len(added)) * 500
        notes.add(text)
        added.append(text)
def written_until_full(notes):
    try:
        fill(notes)
    except StorageError as error:
        print(error)
    assert notes.all() == added and added
"""
SMALL_DISK = f"""{FULL}
ballast = folder / "ballast"
ballast.write_bytes(bytes(200_000))
with Notes(folder) as notes:
    written_until_full(notes)
    count = len(added)
    ballast.unlink()
    written_until_full(notes)
    assert len(added) > count
with Notes(folder) as notes:
    assert notes.all() == added
"""
LIMITED = f"""{FULL}
import resource
with Notes(folder) as notes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    written_until_full(notes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    notes.add("last")
with Notes(folder) as notes:
    assert notes.all() == [*added, "last"]
"""
READ_ONLY = f"""{NOTES}
import subprocess
with Notes(folder) as notes:
    notes.add("one")
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
try:
    with Notes(folder) as notes:
        notes.add("two")
except StorageError as error:
    print(error)
"""


def test_processes_that_make_one_file_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    processes = [start(AT_ONCE, folder, number) for number in range(6)]
    for process in processes:
        finish(process)
    with Notes(folder) as notes:
        assert sorted(notes.all()) == sorted(f"{p} {n}" for p in range(6) for n in range(20))


def test_a_full_disk(tmp_path: Path) -> None:
    first, second = on_small_disk(SMALL_DISK, tmp_path / "disk", "1m")
    for line in (first, second):
        assert "disk is full" in line
        assert "free some space" in line


def test_a_disk_that_refuses_to_write(tmp_path: Path) -> None:
    (line,) = finish(start(LIMITED, tmp_path))
    assert "its disk is full or fails: free some space or check the disk" in line
    assert_sound(tmp_path / Notes.FILE)


def test_a_file_at_its_bound(tmp_path: Path) -> None:
    with Notes(tmp_path) as notes:
        notes.pragma("max_page_count = 8")
        added: list[str] = []

        def fill() -> None:
            while True:
                notes.add(str(len(added)) * 300)
                added.append(str(len(added)) * 300)

        with pytest.raises(StorageError, match="disk is full") as error:
            fill()
        assert only_line(error)
        assert notes.all() == added
        notes.pragma("max_page_count = 100")
        notes.add("more")
        assert notes.all() == [*added, "more"]


def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    (line,) = on_small_disk(READ_ONLY, tmp_path / "disk", "1m")
    assert str(tmp_path) in line
    assert "read-only" in line or "cannot be opened" in line
