"""Stored responses: each user's own, whole chains or an error, bounded, and gone when deleted."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.assistant.database import StorageError
from gptoss_onnx.assistant.response_store import (
    ItemPage,
    ResponseNotFound,
    ResponseStore,
    new_id,
    with_ids,
)
from gptoss_onnx.runtimes.errors import UserError
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


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "id": f"msg_{text}", "content": text, **more}


def answered(text: str, *output: dict[str, Any]) -> dict[str, Any]:
    return {"object": "response", "output": [*output, said(text, role="assistant")]}


def put(store: ResponseStore, name: str, previous: str | None = None, **more: Any) -> None:
    user = more.pop("user", "anna")
    store.put(name, user, answered(f"to {name}"), [said(name)], previous, **more)


def kept(store: ResponseStore, names: list[str], user: str | None = "anna") -> list[str]:
    found = []
    for name in names:
        try:
            store.get(name, user)
            found.append(name)
        except ResponseNotFound:
            pass
    return found


def test_a_response_comes_back(tmp_path: Path) -> None:
    wild = {"id": "resp_1", "text": "禁词\0\ud800'; --", "n": 2**80, "x": [None, 0.1, True]}
    with ResponseStore(tmp_path) as store:
        store.put("resp_1", "anna", wild, [said("\udfff\n")])
        assert store.get("resp_1", "anna") == wild
        assert store.items("resp_1", "anna").data == [said("\udfff\n")]
    with ResponseStore(tmp_path) as store:
        assert store.get("resp_1", "anna") == wild


def test_ids_cannot_be_guessed() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"resp_[0-9a-f]{64}", id) for id in ids)


def test_a_user_sees_own_ones_alone(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        put(store, "resp_1")
        put(store, "resp_2", user=None)
        for id, user in (
            ("resp_1", "bob"),
            ("resp_1", None),
            ("resp_1", "ANNA"),
            ("resp_2", "anna"),
            ("resp_3", "anna"),
            ("RESP_1", "anna"),
            ("%", "anna"),
            ("\ud800\0" * 1000, "anna"),
        ):
            for method in (store.get, store.items, store.chain, store.delete):
                with pytest.raises(ResponseNotFound, match=r"no response .* is stored") as error:
                    method(id, user)  # type: ignore[operator]
                assert error.value.id == id
                assert len(str(error.value)) < 600
        put(store, "resp_b", "resp_1", user="bob")
        with pytest.raises(
            ResponseNotFound, match="resp_b goes on from 'resp_1', which was deleted"
        ):
            store.chain("resp_b", "bob")
        assert store.get("resp_1", "anna")
        assert store.get("resp_2", None)


def test_a_chain_has_all_turns_in_order(tmp_path: Path) -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "id": "fco_1", "call_id": "c", "output": "4"}
    with ResponseStore(tmp_path) as store:
        store.put("resp_1", "anna", {"output": [call]}, [said("a"), said("b")])
        put(store, "resp_other")
        store.put("resp_2", "anna", answered("d", {"type": "reasoning"}), [result], "resp_1")
        put(store, "resp_3", "resp_2")
        put(store, "resp_branch", "resp_1")
        first = [said("a"), said("b"), call]
        second = [result, {"type": "reasoning"}, said("d", role="assistant")]
        third = [said("resp_3"), said("to resp_3", role="assistant")]
        assert store.chain("resp_1", "anna") == first
        assert store.chain("resp_3", "anna") == [*first, *second, *third]
        branch = [said("resp_branch"), said("to resp_branch", role="assistant")]
        assert store.chain("resp_branch", "anna") == [*first, *branch]


def test_a_long_chain(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        for number in range(300):
            put(store, f"resp_{number}", f"resp_{number - 1}" if number else None)
        sent = [item["content"] for item in store.chain("resp_299", "anna")][::2]
        assert sent == [f"resp_{number}" for number in range(300)]


def test_a_chain_that_lost_a_turn(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        put(store, "resp_1")
        put(store, "resp_2", "resp_1")
        put(store, "resp_3", "resp_2")
        put(store, "resp_4", "resp_3")
        store.delete("resp_2", "anna")
        for last in ("resp_3", "resp_4"):
            with pytest.raises(ResponseNotFound) as error:
                store.chain(last, "anna")
            assert error.value.id == "resp_2"
            assert str(error.value) == (
                "resp_3 goes on from 'resp_2', which was deleted or is too old: "
                "send the whole conversation as input"
            )
        assert len(store.chain("resp_1", "anna")) == 2
        assert store.get("resp_4", "anna")


def test_a_chain_that_goes_round_ends(tmp_path: Path) -> None:
    """No caller can make one; the thread must not hang if it ever is there."""
    with ResponseStore(tmp_path) as store:
        put(store, "resp_1", "resp_2")
        put(store, "resp_2", "resp_1")
        with pytest.raises(ResponseNotFound):
            store.chain("resp_2", "anna")


def test_what_is_deleted_is_gone_from_the_disk(tmp_path: Path) -> None:
    def stored() -> bytes:
        return b"".join(file.read_bytes() for file in tmp_path.iterdir())

    with ResponseStore(tmp_path) as store:
        put(store, "resp_other")
        store.put("resp_1", "anna", answered("secret answer"), [said("secret question" * 1000)])
        assert b"secret answer" in stored() and b"secret question" in stored()
        store.delete("resp_1", "anna")
        assert b"secret" not in stored() and b"resp_1" not in stored()
        with pytest.raises(ResponseNotFound):
            store.delete("resp_1", "anna")
        assert store.get("resp_other", "anna")


def test_an_id_is_stored_once(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        put(store, "resp_1")
        with pytest.raises(StorageError):
            put(store, "resp_1", user="bob")
        assert kept(store, ["resp_1"], "bob") == []


def test_items_are_paged(tmp_path: Path) -> None:
    items = [said(str(number)) for number in range(45)]
    with ResponseStore(tmp_path) as store:
        store.put("resp_1", "anna", answered("x"), items)
        assert store.items("resp_1", "anna") == ItemPage(items[:24:-1], True)
        assert store.items("resp_1", "anna", limit=100) == ItemPage(items[::-1], False)
        for order, expected in (("asc", items), ("desc", items[::-1])):
            found: list[Any] = []
            more, after = True, None
            while more:
                page = store.items("resp_1", "anna", limit=15, after=after, order=order)  # type: ignore[arg-type]
                found += page.data
                more, after = page.has_more, page.data[-1]["id"]
            assert found == expected
        assert store.items("resp_1", "anna", after="msg_0") == ItemPage([], False)
        for limit in (0, 101, -1):
            with pytest.raises(UserError, match="is not from 1 to 100"):
                store.items("resp_1", "anna", limit=limit)
        with pytest.raises(UserError, match="is no item of this response"):
            store.items("resp_1", "anna", after="msg_\ud800")


def test_items_without_ids_get_one(tmp_path: Path) -> None:
    given = [{"type": "function_call"}, {"role": "user"}, {"type": "message", "id": "mine"}]
    call, message, mine = with_ids(given)
    assert call["id"].startswith("fc_") and message["id"].startswith("msg_")
    assert mine["id"] == "mine"
    assert "id" not in given[0]
    with ResponseStore(tmp_path) as store:
        store.put("resp_1", "anna", answered("x"), given)
        first, second, _ = store.items("resp_1", "anna", order="asc").data
        page = store.items("resp_1", "anna", order="asc", after=first["id"], limit=1)
        assert page == ItemPage([second], True)


def test_no_more_than_so_many(tmp_path: Path) -> None:
    names = [f"resp_{number}" for number in range(8)]
    with ResponseStore(tmp_path, max_responses=5) as store:
        for name in names:
            put(store, name)
        assert kept(store, names) == names[3:]


def test_no_more_than_so_many_bytes(tmp_path: Path) -> None:
    names = [f"resp_{number}" for number in range(40)]
    with ResponseStore(tmp_path, max_bytes=100_000) as store:
        for name in names:
            store.put(name, "anna", {"output": ["x" * 9_000]}, [])
        assert kept(store, names) == names[-11:]
        with pytest.raises(StorageError, match="too large to be stored"):
            store.put("resp_big", "anna", answered("x" * 100_000), [])
        assert kept(store, names) == names[-11:]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 200_000


def test_one_user_drops_none_of_anothers(tmp_path: Path) -> None:
    flood = [f"resp_{number}" for number in range(50)]
    with ResponseStore(tmp_path, max_responses=20) as store:
        put(store, "resp_first")
        for name in flood:
            put(store, name, user="bob")
        assert kept(store, ["resp_first"]) == ["resp_first"]
        assert kept(store, flood, "bob") == flood[-19:]


def test_responses_that_are_too_old(tmp_path: Path) -> None:
    now = time.time()
    with ResponseStore(tmp_path) as store:
        put(store, "resp_1", created=now - 20 * DAY)
        put(store, "resp_2", "resp_1", created=now - 5 * DAY)
        assert store.get("resp_1", "anna")
    with ResponseStore(tmp_path, days=10) as store:
        for method in (store.get, store.items, store.chain, store.delete):
            with pytest.raises(ResponseNotFound, match="no response 'resp_1'"):
                method("resp_1", "anna")  # type: ignore[operator]
        with pytest.raises(ResponseNotFound, match="resp_2 goes on from 'resp_1', which"):
            store.chain("resp_2", "anna")
        put(store, "resp_3")
    with ResponseStore(tmp_path) as store:  # dropped with the last put
        assert kept(store, ["resp_1", "resp_2", "resp_3"]) == ["resp_2", "resp_3"]


WRITE = """
import itertools, sys
from pathlib import Path
from gptoss_onnx.assistant.response_store import ResponseStore
name, last = sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None
with ResponseStore(Path(sys.argv[1]), wait=60) as store:
    previous = None
    for number in itertools.count():
        id = f"{name}-{number}"
        text = f"{id} 文" * (number * 997 % 4000)
        store.put(id, "anna", {"output": [{"text": text}]}, [{"id": id, "text": text}], previous)
        print(id, flush=True)
        previous = id
        if number == last:
            break
"""


def assert_whole(store: ResponseStore, id: str) -> None:
    """It and every turn before it."""
    name, number = id.split("-")
    expected = []
    for n in range(int(number) + 1):
        text = f"{name}-{n} 文" * (n * 997 % 4000)
        expected += [{"id": f"{name}-{n}", "text": text}, {"text": text}]
    assert store.chain(id, "anna") == expected


def test_killed_in_the_middle(tmp_path: Path) -> None:
    lines = killed_while_writing(WRITE, tmp_path)
    assert_sound(tmp_path / ResponseStore.FILE)
    with ResponseStore(tmp_path) as store:
        assert kept(store, lines) == lines
        last = {line.split("-")[0]: line for line in lines}
        for id in last.values():
            assert_whole(store, id)


def test_two_replicas_share_a_store(tmp_path: Path) -> None:
    for process in [start(WRITE, tmp_path, name, 30) for name in ("a", "b")]:
        assert len(finish(process)) == 31
    with ResponseStore(tmp_path) as store:
        for name in ("a", "b"):
            assert_whole(store, f"{name}-30")


def test_a_locked_store(tmp_path: Path) -> None:
    with ResponseStore(tmp_path, wait=0.1) as store:
        put(store, "resp_1")
        with locked(store.path):
            with pytest.raises(StorageError, match="locked by another program"):
                put(store, "resp_2")
            with pytest.raises(StorageError, match="locked by another program"):
                store.delete("resp_1", "anna")
            assert store.chain("resp_1", "anna")
        put(store, "resp_3")
        assert kept(store, ["resp_1", "resp_2", "resp_3"]) == ["resp_1", "resp_3"]


FULL = """
import sys
from pathlib import Path
from gptoss_onnx.assistant.database import StorageError
from gptoss_onnx.assistant.response_store import ResponseStore
folder, added = Path(sys.argv[1]), []
def response(name):
    return {"output": [name * 1000]}
ballast = folder / "ballast"
ballast.write_bytes(bytes(300_000))
with ResponseStore(folder) as store:
    try:
        while True:
            name = f"resp_{len(added)}"
            store.put(name, "anna", response(name), [])
            added.append(name)
    except StorageError as error:
        print(error)
    assert all(store.get(name, "anna") == response(name) for name in added)
    ballast.unlink()
    store.delete(added.pop(), "anna")
    store.put("resp_last", "anna", response("resp_last"), [])
with ResponseStore(folder, create=False) as store:
    assert all(store.get(name, "anna") == response(name) for name in [*added, "resp_last"])
    print(len(added))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    line, count = on_small_disk(FULL, tmp_path / "disk", "1m")
    assert "disk is full" in line
    assert int(count) > 10
