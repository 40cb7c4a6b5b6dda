"""Other processes on a data folder: one that holds a lock, one that is killed while it writes, one
whose disk is full."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""


def start(script: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> list[str]:
    """The lines of a process that ends by itself."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.splitlines()


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds BEGIN EXCLUSIVE on the file, to the end or until it is killed."""
    with start(LOCK, path) as process:
        assert process.stdout and process.stdout.readline() == "locked\n", process.communicate()
        try:
            yield process
        finally:
            process.kill()


def killed_while_writing(script: str, folder: Path, rounds: int = 8) -> list[str]:
    """Lines that `script`, which writes for ever, acknowledged before each kill -9."""
    chance = random.Random(12)
    lines: list[str] = []
    for number in range(rounds):
        with start(script, folder, number) as process:
            assert process.stdout
            for _ in range(chance.randrange(1, 40)):
                lines.append(process.stdout.readline())
            time.sleep(chance.random() / 100)  # anywhere between two lines
            process.kill()
            lines += process.stdout.readlines()
            assert process.stderr and process.stderr.read() == ""
    assert all(line.endswith("\n") for line in lines)
    return [line.strip() for line in lines]


def on_small_disk(script: str, folder: Path, size: str) -> list[str]:
    """The lines of a script whose argument is a disk of its own of that size."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("no disk can be mounted here: unshare -rm is not allowed")
    folder.mkdir()
    mount = 'mount -t tmpfs -o size="$0" small "$1" && shift && exec "$@"'
    before = ("unshare", "-rm", "sh", "-c", mount, size, str(folder))
    # sh takes "$1" for the folder and shifts it away; the rest is the command.
    return finish(start(script, folder, before=before))


def assert_sound(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def mode(path: Path) -> int:
    return os.stat(path).st_mode & 0o777
