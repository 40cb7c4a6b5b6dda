"""`gptoss serve` as its users start it: a process, a port, keys, signals, kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

GPTOSS = [sys.executable, "-m", "gptoss_onnx.cli"]
PATIENCE = 120.0  # seconds until a test gives up


@contextmanager
def served(folder: Path, data: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its address, /v1 included."""
    command = [*GPTOSS, "serve", str(folder), "--port", "0", "--data", str(data), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"at (http://\S+/v1);", line)
            assert found, (line, process.stderr and process.stderr.read())
            yield process, found[1]
        finally:
            if process.poll() is None:
                process.kill()


def asked(address: str, **others: Any) -> httpx.Response:
    (model,) = httpx.get(f"{address}/models", headers=others.get("headers")).json()["data"]
    body = {"model": model["id"], "messages": [{"role": "user", "content": "Hi?"}]}
    given = {"json": body | {"max_tokens": 5}, "timeout": PATIENCE, **others}
    return httpx.post(f"{address}/chat/completions", **given)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*GPTOSS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_comes(package_folder: Path, tmp_path: Path, number: int) -> None:
    with served(package_folder, tmp_path) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        assert asked(address).status_code == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "Traceback" not in out + err


def test_what_cannot_be_served_is_one_line(package_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, why in {
            ("--port", port): "take another --port",
            ("--host", "0.0.0.0", "--port", 0): "needs users with keys",
            ("--host", "203.0.113.9", "--port", 0): "cannot listen on 203.0.113.9",
            ("--api-keys", "--port", 0): "gptoss users add",
            ("--policy", tmp_path / "none.txt", "--port", 0): "needs both",
            ("--terms", tmp_path / "none.txt", "--port", 0): "none.txt",
        }.items():
            done = run("serve", package_folder, "--data", tmp_path, *options)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
            assert why in done.stderr
    done = run("serve", tmp_path / "none", "--data", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_keys_are_made_and_revoked_beside_it(package_folder: Path, tmp_path: Path) -> None:
    key = run("users", "add", "anna", "--data", tmp_path).stdout.strip()
    with served(package_folder, tmp_path, "--api-keys") as (_, address):
        assert httpx.get(f"{address}/models").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert asked(address, headers=headers).status_code == 200
        assert run("users", "revoke", "anna", "--data", tmp_path).returncode == 0
        assert httpx.get(f"{address}/models", headers=headers).status_code == 401
    assert key not in "".join(
        path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()
    )
    used = json.loads(run("users", "usage", "--data", tmp_path, "--json").stdout)
    assert "anna" in json.dumps(used)


def test_killed_in_the_middle_what_was_answered_is_whole(
    package_folder: Path, tmp_path: Path
) -> None:
    """kill -9 while clients store responses: each that was answered is there, and the log of it."""
    answered: dict[str, str] = {}
    for round_ in range(3):
        with served(package_folder, tmp_path) as (process, address):
            (model,) = httpx.get(f"{address}/models").json()["data"]
            for found, text in answered.items():
                stored = httpx.get(f"{address}/responses/{found}").json()
                assert stored["output"][-1]["status"] in ("completed", "incomplete")
                assert json.dumps(stored["output"]) == text

            def ask(
                number: int, address: str = address, name: str = model["id"], round_: int = round_
            ) -> None:
                while True:
                    body = {"model": name, "input": f"{round_} {number}", "max_output_tokens": 20}
                    try:
                        answer = httpx.post(f"{address}/responses", json=body, timeout=PATIENCE)
                    except httpx.HTTPError:
                        return  # it was killed
                    answered[answer.json()["id"]] = json.dumps(answer.json()["output"])

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
            before = len(answered)
            for thread in threads:
                thread.start()
            while len(answered) < before + 12:
                assert any(thread.is_alive() for thread in threads)
            os.kill(process.pid, signal.SIGKILL)
            for thread in threads:
                thread.join(PATIENCE)
    assert len(answered) >= 36
    with served(package_folder, tmp_path) as (_, address):
        for found, text in answered.items():
            stored = httpx.get(f"{address}/responses/{found}").json()
            assert json.dumps(stored["output"]) == text
    used = json.loads(run("users", "usage", "--data", tmp_path, "--json").stdout)
    assert used, "the log is readable"
