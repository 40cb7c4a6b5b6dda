"""The log of uses: whole entries, bounded bytes, and no text unless asked for."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_onnx.assistant.database import StorageError
from gptoss_onnx.assistant.usage_log import Entry, Summary, UsageLog
from tests.assistant.storage_processes import (
    assert_sound,
    finish,
    killed_while_writing,
    locked,
    on_small_disk,
    start,
)

pytestmark = pytest.mark.filterwarnings("error")
DAY = 86400
ENTRY = Entry(
    user="anna",
    endpoint="/v1/chat/completions",
    model="demo",
    request_id="req_1",
    prompt_tokens=100,
    cached_tokens=60,
    completion_tokens=20,
    reasoning_tokens=5,
    finish_reason="content_filter",
    verdicts=("prompt: passed", "answer: 禁词"),
    duration=0.5,
    prompt="a prompt with a secret",
    answer="an answer\nof two lines",
)


def files(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if not file.name.endswith("-shm"))


def test_an_entry_comes_back(tmp_path: Path) -> None:
    with UsageLog(tmp_path, text=True) as log:
        log.add(ENTRY)
        log.add(replace(ENTRY, user=None, finish_reason=None, verdicts=(), prompt=None))
        one, two = log.entries()
        assert one == ENTRY
        assert two == replace(ENTRY, user=None, finish_reason=None, verdicts=(), prompt=None)


def test_text_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    with UsageLog(tmp_path / "with", text=True) as log:
        log.add(ENTRY)
        assert b"secret" in files(tmp_path / "with")
    with UsageLog(tmp_path / "without") as log:
        log.add(ENTRY)
        assert list(log.entries()) == [replace(ENTRY, prompt=None, answer=None)]
        assert b"secret" not in files(tmp_path / "without")
        assert b"two lines" not in files(tmp_path / "without")


def test_what_callers_choose_is_cut_and_cleaned(tmp_path: Path) -> None:
    wild = "\ud800\0'; DROP TABLE usage; --" * 10_000
    with UsageLog(tmp_path, text=True, max_bytes=1 << 20) as log:
        log.add(Entry(wild, wild, wild, wild, finish_reason=wild, prompt=wild, answer=wild))
        (entry,) = log.entries()
        for value in (entry.user, entry.model, entry.request_id, entry.endpoint):
            assert value and len(value) == 200 and value.startswith("?\0'; DROP")
        assert entry.prompt and len(entry.prompt) == (1 << 20) // 64


def test_reading_from_a_time_and_of_a_user(tmp_path: Path) -> None:
    now = time.time()
    with UsageLog(tmp_path) as log:
        for number in range(1201):  # more than two reads
            user = "bob" if number % 3 else "anna"
            log.add(Entry(user, "/", "demo", str(number), at=now + number))
        found = [entry.request_id for entry in log.entries(now + 10, "bob")]
        assert found == [str(number) for number in range(10, 1201) if number % 3]
        assert len(list(log.entries())) == 1201


def test_a_summary(tmp_path: Path) -> None:
    now = time.time()
    with UsageLog(tmp_path) as log:
        log.add(replace(ENTRY, at=now - 10))
        log.add(replace(ENTRY, at=now, finish_reason="stop"))
        log.add(replace(ENTRY, at=now, user="bob", prompt_tokens=1000))
        assert log.summary() == [
            Summary("bob", 1, 1000, 60, 20, 5, 1, now),
            Summary("anna", 2, 200, 120, 40, 10, 1, now),
        ]
        assert [row.requests for row in log.summary(now - 5)] == [1, 1]


def test_the_oldest_go_first(tmp_path: Path) -> None:
    bound = 1 << 20
    with UsageLog(tmp_path, text=True, max_bytes=bound) as log:
        most = 0
        for number in range(1000):
            log.add(replace(ENTRY, request_id=str(number), prompt=f"{number} " * 600))
            most = max(most, size(tmp_path))
        kept = [int(entry.request_id) for entry in log.entries()]
        assert kept == list(range(kept[0], 1000))
        assert 100 < len(kept) < 900
    assert most <= bound + (1 << 20)  # SQLite's journal is another MiB at most
    assert most > bound // 2


def test_a_lower_bound_gives_the_disk_back(tmp_path: Path) -> None:
    with UsageLog(tmp_path, text=True) as log:
        for number in range(1000):
            log.add(replace(ENTRY, request_id=str(number), prompt="long " * 200))
    before = size(tmp_path)
    with UsageLog(tmp_path, max_bytes=200_000) as log:
        log.add(replace(ENTRY, request_id="last"))
        assert [entry.request_id for entry in log.entries()][-1] == "last"
    assert before > 1_000_000
    assert size(tmp_path) <= 200_000


def test_no_room_for_a_single_entry_ends(tmp_path: Path) -> None:
    with UsageLog(tmp_path, max_bytes=1) as log:
        log.add(ENTRY)
        assert list(log.entries()) == []


def test_entries_that_are_too_old(tmp_path: Path) -> None:
    now = time.time()
    with UsageLog(tmp_path, days=10) as log:
        for days in (12, 11, 9, 0):
            log.add(replace(ENTRY, request_id=str(days), at=now - days * DAY))
        assert [entry.request_id for entry in log.entries()] == ["9", "0"]


WRITE = """
import itertools, sys
from pathlib import Path
from gptoss_onnx.assistant.usage_log import Entry, UsageLog
name, last = sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None
with UsageLog(Path(sys.argv[1]), text=True, wait=60) as log:
    for number in itertools.count():
        request = f"{name}-{number}"
        text = f"{request} 文\\n" * (number * 37 % 500)
        log.add(Entry(name, "/", "demo", request, prompt_tokens=number, prompt=text))
        print(request, flush=True)
        if number == last:
            break
"""


def assert_whole(entry: Entry) -> None:
    number = int(entry.request_id.split("-")[1])
    assert entry.prompt_tokens == number
    assert entry.prompt == f"{entry.request_id} 文\n" * (number * 37 % 500)


def test_killed_in_the_middle(tmp_path: Path) -> None:
    lines = killed_while_writing(WRITE, tmp_path)
    assert_sound(tmp_path / UsageLog.FILE)
    with UsageLog(tmp_path) as log:
        entries = list(log.entries())
    for entry in entries:
        assert_whole(entry)
    stored = [entry.request_id for entry in entries]
    assert [line for line in stored if line in set(lines)] == lines
    assert len(stored) <= len(lines) + 8  # one a round was stored and not yet told


def test_two_replicas_write_one_log(tmp_path: Path) -> None:
    for process in [start(WRITE, tmp_path, name, 100) for name in ("a", "b")]:
        assert len(finish(process)) == 101
    with UsageLog(tmp_path) as log:
        for name in ("a", "b"):
            entries = list(log.entries(user=name))
            assert [entry.request_id for entry in entries] == [f"{name}-{n}" for n in range(101)]
            for entry in entries:
                assert_whole(entry)


def test_a_locked_log(tmp_path: Path) -> None:
    with UsageLog(tmp_path, wait=0.1) as log:
        log.add(ENTRY)
        with locked(log.path):
            with pytest.raises(StorageError, match="locked by another program"):
                log.add(replace(ENTRY, request_id="lost"))
            assert len(list(log.entries())) == 1
        log.add(replace(ENTRY, request_id="req_2"))
        assert [entry.request_id for entry in log.entries()] == ["req_1", "req_2"]


FULL = """
import sys
from pathlib import Path
from gptoss_onnx.assistant.database import StorageError
from gptoss_onnx.assistant.usage_log import Entry, UsageLog
folder, added = Path(sys.argv[1]), []
with UsageLog(folder, text=True) as log:
    try:
        while True:
            log.add(Entry("anna", "/", "demo", str(len(added)), prompt="text " * 200))
            added.append(str(len(added)))
    except StorageError as error:
        print(error)
with UsageLog(folder, create=False) as log:
    assert [entry.request_id for entry in log.entries()] == added
    print(len(added))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    line, count = on_small_disk(FULL, tmp_path / "disk", "1m")
    assert "disk is full" in line
    assert int(count) > 50
