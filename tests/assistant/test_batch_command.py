from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gptoss_onnx.assistant import batch_answers
from gptoss_onnx.assistant.batch_command import batch
from gptoss_onnx.assistant.batch_file import Answers, Line
from gptoss_onnx.assistant.usage_log import UsageLog
from gptoss_onnx.runtimes.errors import UserError
from tests.assistant.asking import CHAT, body
from tests.assistant.batch_lines import answers, by_id, line, request, started, write
from tests.assistant.conftest import MODEL, Says, Serve

SAID = "<|channel|>final<|message|>"


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_DATA", str(tmp_path / "data"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(batch, [*map(str, arguments)])


def test_each_request_is_answered(package_folder: Path, tmp_path: Path, says: Says) -> None:
    says(SAID + "Hello.")
    source = write(tmp_path / "in", (request(f"r{i}", max_tokens=None) for i in range(40)))
    done = run(package_folder, source, tmp_path / "out", "--rows", 4)
    assert (done.exit_code, done.exception) == (0, None)
    assert "40 answers, 40 of them new" in done.output
    found = by_id(tmp_path / "out")
    assert found.keys() == {f"r{i}" for i in range(40)}
    for answer in found.values():
        assert answer["error"] is None
        response = answer["response"]
        assert response["status_code"] == 200
        assert response["request_id"].startswith("req_")
        assert response["body"]["object"] == "chat.completion"
        assert response["body"]["choices"][0]["message"]["content"] == "Hello."
    with UsageLog() as log:
        logged = {entry.request_id for entry in log.entries()}
    assert logged == {answer["response"]["request_id"] for answer in found.values()}


def test_answers_are_the_servers(package_folder: Path, tmp_path: Path, serve: Serve) -> None:
    texts = [f"{i}" * (1 + 7 * i) for i in range(12)]
    done = run(
        package_folder,
        write(tmp_path / "in", (request(text, text) for text in texts)),
        tmp_path / "out",
    )
    assert done.exit_code == 0
    found = by_id(tmp_path / "out")
    client = serve()
    for text in texts:
        alone = client.post(CHAT, json=body(text, temperature=0, max_tokens=8)).json()
        answer = found[text]["response"]["body"]
        assert answer["choices"] == alone["choices"]
        assert answer["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]


def test_what_is_wrong_is_an_answer_and_the_rest_goes_on(
    package_folder: Path, tmp_path: Path, says: Says
) -> None:
    says(SAID + "Hello.")
    lines = [
        "{nonsense",
        request("right"),
        line("url", "/v1/embeddings", {}),
        line("long", "/v1/completions", {"model": MODEL, "prompt": "x" * 5000}),
        line("other", CHAT, {**body(), "model": "gpt-9"}),
        line("empty", CHAT, {}),
        line("prompt", "/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 3}),
    ]
    done = run(package_folder, write(tmp_path / "in", lines), tmp_path / "out")
    assert done.exit_code == 1
    assert "Error: 5 of 7 answers in" in done.output
    found = by_id(tmp_path / "out")
    assert found[None]["error"]["line"] == 1  # type: ignore[index]
    assert found["url"]["response"] is None
    assert "url must be one of" in found["url"]["error"]["message"]
    status = {name: answer["response"]["status_code"] for name, answer in found.items()
              if answer["response"]}  # fmt: skip
    assert status == {"right": 200, "long": 400, "other": 404, "empty": 400, "prompt": 200}
    assert found["long"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert found["prompt"]["response"]["body"]["object"] == "text_completion"
    # A second time there is nothing to do, and what failed is told again.
    content = (tmp_path / "out").read_bytes()
    done = run(tmp_path / "no package is needed", tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 1
    assert "7 answers, 0 of them new" in done.output
    assert (tmp_path / "out").read_bytes() == content


def test_two_of_one_id_are_refused_before_anything_runs(
    package_folder: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", [request("a"), request("b"), request("a")])
    done = run(package_folder, source, tmp_path / "out")
    assert isinstance(done.exception, UserError)
    assert "lines 1 and 3" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_another_process_may_not_write_the_same_answers(
    package_folder: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", [request("a")])
    with Answers(tmp_path / "out"):
        other = started(package_folder, source, tmp_path / "out")
        _, told = other.communicate(timeout=60)
    assert other.returncode != 0
    assert "is being written by another process" in told
    assert answers(tmp_path / "out") == []


def test_a_package_that_cannot_be_loaded_is_one_error(tmp_path: Path, package_folder: Path) -> None:
    source = write(tmp_path / "in", [request("a")])
    done = run(tmp_path / "missing", source, tmp_path / "out")
    assert isinstance(done.exception, UserError)
    assert answers(tmp_path / "out") == []
    assert run(package_folder, source, tmp_path / "out").exit_code == 0


def test_killed_in_the_middle_it_goes_on(package_folder: Path, tmp_path: Path) -> None:
    names = [f"r{i}" for i in range(200)]
    source = write(tmp_path / "in", (request(name, name, max_tokens=40) for name in names))
    out = tmp_path / "out"
    for least in (5, 60):
        process = started(package_folder, source, out, "--rows", 4)
        while not out.exists() or out.read_bytes().count(b"\n") < least:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert least <= out.read_bytes().count(b"\n") < 200
    # Where it was killed while it wrote.
    whole = out.read_bytes()
    half = json.dumps({"id": "batch_req_1", "custom_id": "r199", "response": None})
    out.write_bytes(whole[: whole.rindex(b"\n") + 1] + half.encode())
    assert run(package_folder, source, out).exit_code == 0
    assert by_id(out).keys() == set(names)
    assert out.read_bytes().startswith(whole[: whole.rindex(b"\n") + 1])


def test_few_lines_are_under_way_and_no_more_are_read() -> None:
    read, asked, most = 0, 0, 0

    def lines() -> Any:
        nonlocal read
        for number in range(100):
            read += 1
            yield Line(number, 0, str(number), CHAT, b"{}")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        assert (await receive())["body"] == b"{}"
        await asyncio.sleep(0)
        asked -= 1
        head = [(b"x-request-id", b"req_1")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b'{"a":', "more_body": True})
        await send({"type": "http.response.body", "body": b"1}"})

    found: list[bytes] = []

    def write(answers: Any) -> None:
        found.extend(answers)
        assert read - len(found) <= 8

    asyncio.run(batch_answers.answer_all(app, lines(), 8, write))
    assert most == 8
    assert len(found) == 100
    assert json.loads(found[0])["response"]["body"] == {"a": 1}


def test_what_there_was_no_room_for_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_answers, "_PAUSES", (0.0, 0.0))
    said: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        head = [(b"x-request-id", b"req_1")]
        await send({"type": "http.response.start", "status": said.pop(0), "headers": head})
        await send({"type": "http.response.body", "body": b"{}"})

    def status(*codes: int) -> int:
        said[:] = codes
        answer = asyncio.run(batch_answers.answer(app, Line(1, 0, "a", CHAT, b"{}")))
        assert not said
        return int(json.loads(answer)["response"]["status_code"])

    assert status(503, 429, 200) == 200
    assert status(503, 503, 503) == 503
    assert status(400) == 400
    assert status(500) == 500


def test_a_disk_that_is_full_ends_it(
    package_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in", (request(f"r{i}") for i in range(20)))
    written = Answers.write

    def full(self: Answers, found: list[bytes]) -> None:
        written(self, found)
        raise UserError("out cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "write", full)
        done = run(package_folder, source, tmp_path / "out", "--rows", 2)
    assert isinstance(done.exception, UserError)
    assert 1 <= len(answers(tmp_path / "out")) < 20
    assert run(package_folder, source, tmp_path / "out").exit_code == 0
    assert len(by_id(tmp_path / "out")) == 20
