"""Users and their keys, from the command line and under a running server."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gptoss_onnx.assistant import users as module
from gptoss_onnx.assistant.database import StorageError
from gptoss_onnx.assistant.usage_log import Entry, UsageLog
from gptoss_onnx.assistant.user_commands import users as commands
from gptoss_onnx.assistant.users import Users
from gptoss_onnx.runtimes.errors import UserError
from tests.assistant.storage_processes import (
    assert_sound,
    finish,
    killed_while_writing,
    locked,
    start,
)

pytestmark = pytest.mark.filterwarnings("error")
Command = Callable[..., Result]


def test_a_key_finds_its_user(tmp_path: Path) -> None:
    with Users(tmp_path) as users:
        keys = {name: users.add(name) for name in ("anna", "li.wei@example.com")}
        for name, key in keys.items():
            assert key.startswith("gptoss_") and len(key) == 50
            found = users.find(key)
            assert found and found.name == name and key.startswith(found.key_start)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1] + ("a" if key[-1] != "a" else "b"),  # the start finds a row
        lambda key: key[:-1],
        lambda key: key + "a",
        lambda key: key[:13],
        lambda key: key.upper(),
        lambda key: "",
        lambda key: "gptoss_",
        lambda key: "\ud800" * 50,
        lambda key: key[:13] + "\ud800",
        lambda key: key[:5] + "\0" + key[5:],
        lambda key: "%",
        lambda key: "x" * 1_000_000,
    ],
)
def test_any_other_key_finds_nobody(tmp_path: Path, change: Callable[[str], str]) -> None:
    with Users(tmp_path) as users:
        key = users.add("anna")
        assert users.find(change(key)) is None
        assert users.find(key)


def test_keys_are_nowhere_on_the_disk(tmp_path: Path) -> None:
    with Users(tmp_path) as users:
        key = users.add("anna")
        stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert key[: module.SHOWN].encode() in stored  # so the search below would find it
        assert key[: module.SHOWN + 4].encode() not in stored


def test_a_revoked_key_finds_nobody_in_any_process(tmp_path: Path) -> None:
    with Users(tmp_path) as server, Users(tmp_path) as command:
        key = command.add("anna")
        assert server.find(key)
        assert command.revoke("ANNA").name == "anna"
        assert server.find(key) is None
        with pytest.raises(UserError, match="revoked already"):
            command.revoke("anna")
        with pytest.raises(UserError, match="no user 'bob': see `gptoss users list`"):
            command.revoke("bob")
        other = command.add("anna")
        assert server.find(key) is None
        assert server.find(other)


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    with Users(tmp_path) as users:
        key = users.add("anna")
        with pytest.raises(UserError, match="there is a user anna already"):
            users.add("Anna")
        assert users.find(key)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "-a", ".", "a/b", "a\n", "名", "a" * 65, "\x1b[2J", "a'; --", "\ud800"]
)
def test_names_are_checked(tmp_path: Path, name: str) -> None:
    with Users(tmp_path) as users:
        with pytest.raises(UserError, match="is no user's name") as error:
            users.add(name)
        assert str(error.value).isprintable()
        with pytest.raises(UserError, match="there is no user"):
            users.revoke(name)
        assert users.all() == []


def test_the_last_use_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: clock[0])
    with Users(tmp_path) as users:
        key = users.add("anna")
        assert users.all()[0].last_used is None
        noted = []
        for now in (1001.0, 1030.0, 1062.0):
            clock[0] = now
            users.find(key)
            noted.append(users.all()[0].last_used)
        assert noted == [1001.0, 1001.0, 1062.0]


def test_a_locked_file_lets_users_in(tmp_path: Path) -> None:
    """Noting a use is no reason to wait, let alone to refuse."""
    with Users(tmp_path, wait=600) as users:
        key = users.add("anna")
        with locked(users.path):
            assert users.find(key)
            assert users.all()[0].last_used is None
    with Users(tmp_path, wait=0.1) as users, locked(users.path):
        with pytest.raises(StorageError, match="locked by another program"):
            users.revoke("anna")
        with pytest.raises(StorageError, match="locked by another program"):
            users.add("bob")
        assert users.find(key)


ADD = """
import itertools, sys
from pathlib import Path
from gptoss_onnx.assistant.users import Users
with Users(Path(sys.argv[1])) as users:
    for number in itertools.count():
        name = f"u{sys.argv[2]}-{number}"
        print(name, users.add(name), flush=True)
        if number == 30 and sys.argv[2].startswith("x"):
            break
"""


def test_killed_in_the_middle(tmp_path: Path) -> None:
    lines = killed_while_writing(ADD, tmp_path)
    assert_sound(tmp_path / Users.FILE)
    with Users(tmp_path) as users:
        for line in lines:
            name, key = line.split()
            found = users.find(key)
            assert found and found.name == name


def test_a_server_and_commands_at_once(tmp_path: Path) -> None:
    with Users(tmp_path, wait=60) as server:
        key = server.add("anna")
        processes = [start(ADD, tmp_path, f"x{number}") for number in range(2)]
        while any(process.poll() is None for process in processes):
            assert server.find(key)
        lines = [line for process in processes for line in finish(process)]
        assert len(lines) == 62
        for line in lines:
            name, key = line.split()
            assert (found := server.find(key)) and found.name == name


@pytest.fixture
def command(tmp_path: Path) -> Command:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(commands, [*arguments, "--data", str(tmp_path)])

    return run


def test_the_command_line(command: Command, tmp_path: Path) -> None:
    added = command("add", "anna")
    key = added.stdout.strip()
    assert "nothing can show it again" in added.stderr
    other = json.loads(command("add", "bob", "--json").stdout)
    assert other["name"] == "bob"
    with Users(tmp_path) as users:
        assert users.find(key) and users.find(other["key"])
    assert command("revoke", "bob").stdout == "revoked  bob\n"
    rows = json.loads(command("list", "--json").stdout)["users"]
    assert [(row["name"], row["revoked"] is None) for row in rows] == [
        ("anna", True),
        ("bob", False),
    ]
    shown = command("list").stdout
    assert "anna" in shown and key[:13] in shown and key[:17] not in shown


def test_what_the_command_line_refuses(command: Command) -> None:
    for arguments, words in (
        (["list"], "users.sqlite is not there"),
        (["usage"], "usage.sqlite is not there"),
        (["revoke", "anna"], "users.sqlite is not there"),
        (["add", "a b"], "is no user's name"),
    ):
        error = command(*arguments).exception
        assert isinstance(error, UserError) and words in str(error)


def test_usage_by_user(command: Command, tmp_path: Path) -> None:
    with UsageLog(tmp_path) as log:
        log.add(Entry("anna", "/v1/responses", "demo", "1", prompt_tokens=10, cached_tokens=4))
        log.add(Entry("bob", "/v1/responses", "demo", "2", prompt_tokens=90))
        log.add(Entry("anna", "/v1/responses", "demo", "3", at=1.0, finish_reason="content_filter"))
        log.add(Entry(None, "/v1/responses", "demo", "4", completion_tokens=1))
    rows = json.loads(command("usage", "--json").stdout)["usage"]
    assert [(row["user"], row["requests"]) for row in rows] == [("bob", 1), ("anna", 1), (None, 1)]
    assert rows[1]["prompt_tokens"] == 10 and rows[1]["cached_tokens"] == 4
    assert "bob" in command("usage", "--days", "1").stdout


def test_a_database_that_is_ours_alone(tmp_path: Path) -> None:
    """The schema is a promise to later versions: its columns are these."""
    Users(tmp_path).close()
    connection = sqlite3.connect(tmp_path / Users.FILE)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(users)")]
    connection.close()
    assert columns == ["name", "key_start", "digest", "created", "last_used", "revoked"]
