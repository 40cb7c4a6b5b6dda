from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.assistant import batch_file
from gptoss_onnx.assistant.batch_file import (
    Answers,
    Line,
    answered,
    check_requests,
    read_lines,
    read_lines_at,
    refused,
)
from gptoss_onnx.runtimes.errors import UserError
from tests.assistant.asking import CHAT
from tests.assistant.batch_lines import answers, line, request, write


def _line(custom_id: str) -> Line:
    return Line(1, 0, custom_id, CHAT, b"{}")


def _answer(custom_id: str, status: int = 200) -> bytes:
    return answered(_line(custom_id), status, "req_1", {"text": "Grüße 你好"})


def test_a_request_is_its_id_url_and_body(tmp_path: Path) -> None:
    content = request("a", "Grüße")
    (found,) = read_lines(write(tmp_path / "in", [content]))
    assert (found.number, found.custom_id, found.url, found.fault) == (1, "a", CHAT, None)
    assert json.loads(found.body) == content["body"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{nonsense", "line 2 is not JSON"),
        ('{"custom_id": NaN}', "line 2 is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "no JSON object"),
        ({}, "no custom_id"),
        (line(7, CHAT, {}), "no custom_id"),
        (line("", CHAT, {}), "no custom_id"),
        (line("a", CHAT, {}, "GET"), "method"),
        (line("a", "/v1/embeddings", {}), "url must be one of /v1/chat/completions,"),
        (line("a", [], {}), "url"),
        (line("a", CHAT, "text"), "body"),
        (line("a", CHAT, {"stream": True}), "leave out stream"),
    ],
)
def test_what_is_no_request_has_a_fault(tmp_path: Path, content: Any, why: str) -> None:
    path = write(tmp_path / "in", [request("first"), content, request("last")])
    first, wrong, last = read_lines(path)
    assert why in str(wrong.fault)
    assert first.fault is None
    assert last.fault is None
    assert json.loads(refused(wrong))["error"]["line"] == 2


def test_lines_are_read_as_editors_write_them(tmp_path: Path) -> None:
    texts = [json.dumps(request(name)) for name in "ab"]
    path = tmp_path / "in"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([texts[0], "", texts[1]]).encode())
    found = list(read_lines(path))
    assert [(each.number, each.custom_id, each.fault) for each in found] == [
        (1, "a", None),
        (3, "b", None),
    ]
    again = list(read_lines_at(path, [(each.number, each.start) for each in reversed(found)]))
    assert again == found[::-1]


def test_text_that_is_no_utf8_is_one_lines_fault(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"\xff\xfe\n" + json.dumps(request("a")).encode())
    wrong, right = read_lines(path)
    assert "UTF-8" in str(wrong.fault)
    assert right.fault is None


def test_a_line_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_file, "_LONGEST", 1000)
    long = request("long", "x" * 3_000_000)
    found = list(read_lines(write(tmp_path / "in", [long, request("a"), request("long")])))
    assert "longer than 1000 bytes" in str(found[0].fault)
    assert [each.custom_id for each in found] == [None, "a", "long"]
    (last,) = read_lines_at(tmp_path / "in", [(3, found[2].start)])
    assert last == found[2]


def test_two_requests_of_one_id_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in", [request("a"), "", "?", "?", request("b"), request("a")])
    with pytest.raises(UserError, match=r"lines 1 and 6 have the same custom_id 'a'"):
        check_requests(path)
    write(path, [request("a"), "", "?", "?", request("b")])
    assert check_requests(path) == 4


@pytest.mark.parametrize("name", ["missing", "."])
def test_requests_must_be_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"No such file|no file"):
        check_requests(tmp_path / name)


def test_answers_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Answers(path) as out:
        out.write([_answer("a"), _answer("b", 400)])
        out.write([refused(Line(3, 9, fault="line 3 is not JSON")), _answer("a")])
        assert out.done == {"a", "b", 3}
    content = path.read_bytes()
    with Answers(path) as out:
        assert out.done == {"a", "b", 3}
        assert out.failed == 2
    assert path.read_bytes() == content
    assert [each["custom_id"] for each in answers(path)] == ["a", "b", None]
    assert "Grüße 你好".encode() in content


def test_half_a_surrogate_pair_is_an_answer_too(tmp_path: Path) -> None:
    with Answers(tmp_path / "out") as out:
        out.write([_answer("\ud800")])
    with Answers(tmp_path / "out") as out:
        assert out.done == {"\ud800"}


@pytest.mark.parametrize("cut", [1, 5, 17, 18, 40, -1])
def test_a_line_that_was_cut_is_no_answer(tmp_path: Path, cut: int) -> None:
    path, whole = tmp_path / "out", _answer("a")
    for before in (b"", whole):
        path.write_bytes(before + _answer("b")[:cut])
        with Answers(path) as out:
            assert out.done == ({"a"} if before else set())
            assert path.read_bytes() == before
            out.write([_answer("b")])
        assert answers(path)[-1]["custom_id"] == "b"


def test_what_a_power_cut_left_empty_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for before in (b"", _answer("a")):
        path.write_bytes(before + bytes(4096))
        with Answers(path):
            assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"Dear diary,", json.dumps(request("a")).encode() + b"\n", _answer("a") + b"more\n"],
)
def test_another_kind_of_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no answer of a batch"):
        Answers(path)
    assert path.read_bytes() == content


def test_only_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Answers(path) as out:
        with pytest.raises(UserError, match="another process"):
            Answers(path)
        out.write([_answer("a")])
    with Answers(path) as out:
        assert out.done == {"a"}


def test_answers_are_on_the_disk_when_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.stat().st_size))
    path = tmp_path / "out"
    with Answers(path) as out:
        synced.clear()
        out.write([_answer("a"), _answer("b")])
    assert synced == [path.stat().st_size]


class _Disk:
    """Takes a few bytes at a time, and none when it is full."""

    def __init__(self, file: Any, room: int) -> None:
        self._file = file
        self._room = room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: memoryview) -> int:
        count = min(7, self._room, len(data))
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= count
        return int(self._file.write(data[:count]))


def test_a_write_that_stops_halfway_goes_on(tmp_path: Path) -> None:
    with Answers(tmp_path / "out") as out:
        out._file = _Disk(out._file, 10_000)  # type: ignore[assignment]
        out.write([_answer("a"), _answer("b")])
    assert [each["custom_id"] for each in answers(tmp_path / "out")] == ["a", "b"]


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Answers(path) as out:
        out.write([_answer("a")])
        out._file = _Disk(out._file, 50)  # type: ignore[assignment]
        with pytest.raises(UserError, match=r"No space left on device; .* start again"):
            out.write([_answer("b")])
    with Answers(path) as out:
        assert out.done == {"a"}
        out.write([_answer("b")])
    assert [each["custom_id"] for each in answers(path)] == ["a", "b"]
