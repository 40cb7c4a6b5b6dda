"""Responses that are kept, or not: what a conversation goes on from, and who may read it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from gptoss_onnx.assistant.database import StorageError
from gptoss_onnx.assistant.users import Users
from gptoss_onnx.runtimes.package import Package
from tests.assistant.conftest import Says, Serve
from tests.assistant.responding import (
    ANSWER,
    CALL,
    RESPONSES,
    THOUGHT,
    WEATHER,
    Json,
    body,
    both,
    encoded,
    events,
    respond,
    streamed,
    text_of,
    told,
)
from tests.assistant.storage_processes import locked
from tests.runtimes.scripted import encode

_EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USER = "<|start|>user<|message|>{}<|end|>"
THOUGHT_SHOWN = "<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>{}<|end|>"
RESULT = "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>{}<|end|>"
OPEN = "<|start|>assistant"


def check(answer: Any, status: int, code: str | None, param: str | None = None) -> Json:
    """The error of an answer that must be one."""
    assert answer.status_code == status, answer.text
    error: Json = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    return error


def get(client: TestClient, response_id: str, **others: Any) -> Any:
    return client.get(f"{RESPONSES}/{response_id}", **others)


def output(call: Json, text: Any = "sunny") -> Json:
    return {"type": "function_call_output", "call_id": call["call_id"], "output": text}


@pytest.fixture
def prompts(client: TestClient, package: Package, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that the model of `client` gets, behind the system message, marks written out."""
    found: list[str] = []
    service = client.service  # type: ignore[attr-defined]
    answer = service.answer

    def note(request: Any, endpoint: str, model: str, make: Callable[[Any], Any]) -> Any:
        def noted(engine: Any) -> Any:
            turn = make(engine)
            shown = package.tokenizer.show(turn.prompt(package)[0])
            found.append(shown[shown.index("<|start|>", 1) :])
            return turn

        return answer(request, endpoint, model, noted)

    monkeypatch.setattr(service, "answer", note)
    return found


def test_openais_types_know_every_event_and_every_answer(client: TestClient, says: Says) -> None:
    for text in (ANSWER, CALL):
        says(text)
        found = events(client, tools=[WEATHER], include=["message.output_text.logprobs"])
        for event in found:
            _EVENTS.validate_python(event, strict=False)
        Response.model_validate(told(found))
        response = respond(client, tools=[WEATHER])
        Response.model_validate(response)
        Response.model_validate(get(client, response["id"]).json())
        listed = get(client, f"{response['id']}/input_items").json()
        ResponseItemList.model_validate(listed)


@pytest.mark.parametrize("ask", [respond, streamed])
def test_a_response_is_there_after_the_server_started_again(
    ask: Callable[..., Json], serve: Serve, says: Says
) -> None:
    says(ANSWER)
    response = ask(serve(), metadata={"a": "ü"})
    again = serve()
    assert response["store"] is True
    assert get(again, response["id"]).json() == response
    following = respond(again, "And?", previous_response_id=response["id"])
    assert following["previous_response_id"] == response["id"]


def test_a_deleted_response_is_gone(client: TestClient, says: Says) -> None:
    says(ANSWER)
    first = respond(client)["id"]
    second = respond(client, previous_response_id=first)["id"]
    answer = client.delete(f"{RESPONSES}/{first}")
    assert answer.json() == {"id": first, "object": "response", "deleted": True}
    for gone in (
        get(client, first),
        get(client, f"{first}/input_items"),
        client.delete(f"{RESPONSES}/{first}"),
    ):
        check(gone, 404, "response_not_found", "id")
    assert get(client, second).status_code == 200
    for previous in (first, second):  # the second goes on from what is not known any more
        answer = client.post(RESPONSES, json=body(previous_response_id=previous))
        error = check(answer, 400, "previous_response_not_found", "previous_response_id")
        assert first in error["message"]


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[tuple[Users, list[dict[str, str]]]]:
    """Two users' headers."""
    with Users(tmp_path / "data") as users:
        made = [users.add(name) for name in ("anna", "bob")]
        yield users, [{"Authorization": f"Bearer {key}"} for key in made]


def test_anothers_response_is_none(
    serve: Serve, says: Says, keys: tuple[Users, list[dict[str, str]]]
) -> None:
    users, (anna, bob) = keys
    client = serve(users=users)
    says(ANSWER)
    response = client.post(RESPONSES, json=body(), headers=anna).json()
    own, message = response["id"], response["output"][1]["id"]
    for answer in (
        get(client, own, headers=bob),
        get(client, f"{own}/input_items", headers=bob),
        client.delete(f"{RESPONSES}/{own}", headers=bob),
    ):
        error = check(answer, 404, "response_not_found", "id")
        unknown = get(client, own[:-1], headers=bob).json()["error"]
        assert error["message"].replace(own, own[:-1]) == unknown["message"]
    going_on = body(previous_response_id=own)
    code = "previous_response_not_found"
    param = "previous_response_id"
    check(client.post(RESPONSES, json=going_on, headers=bob), 400, code, param)
    reference = body([{"type": "item_reference", "id": message}])
    check(client.post(RESPONSES, json=reference, headers=bob), 404, None, "input.0.id")
    for mine in (going_on, reference):
        assert client.post(RESPONSES, json=mine, headers=anna).status_code == 200
    assert get(client, own, headers=anna).json() == response
    assert get(client, own).status_code == 401


@pytest.mark.parametrize("ask", [respond, streamed])
def test_a_chain_with_a_tool_call(
    ask: Callable[..., Json], client: TestClient, says: Says, prompts: list[str]
) -> None:
    says(CALL, ANSWER, ANSWER)
    first = ask(client, "Sunny?", tools=[WEATHER])
    call = first["output"][1]
    second = ask(client, [output(call)], tools=[WEATHER], previous_response_id=first["id"])
    third = ask(client, "Sure?", tools=[WEATHER], previous_response_id=second["id"])
    assert text_of(third) == "Grüße!"
    opened = prompts[0].removesuffix(OPEN)
    assert opened.endswith(USER.format("Sunny?"))
    wrote = f"{THOUGHT_SHOWN}{OPEN}{CALL.rpartition('<|start|>assistant')[2]}"
    assert prompts[1] == f"{opened}{wrote}{RESULT.format('sunny')}{OPEN}"
    # Of a turn that is over the thoughts are left out.
    said = wrote.removeprefix(THOUGHT_SHOWN) + RESULT.format("sunny") + FINAL.format("Grüße!")
    assert prompts[2] == f"{opened}{said}{USER.format('Sure?')}{OPEN}"


def test_two_go_on_from_one(client: TestClient, says: Says, prompts: list[str]) -> None:
    says(ANSWER)
    first = respond(client, "a")["id"]
    for text in "bc":
        respond(client, text, previous_response_id=first)
    start = USER.format("a") + FINAL.format("Grüße!")
    assert prompts[1:] == [f"{start}{USER.format(text)}{OPEN}" for text in "bc"]


def test_a_call_has_one_output(client: TestClient, says: Says) -> None:
    says(CALL, ANSWER)
    first = respond(client, tools=[WEATHER])
    call = first["output"][1]
    asked = {"previous_response_id": first["id"]}
    second = respond(client, [output(call)], **asked)["id"]
    for given, previous in (
        ([output(call), output(call)], first["id"]),
        ([{"role": "user", "content": "a"}, output({"call_id": "call_1"})], first["id"]),
        ([{"role": "user", "content": "a"}, output(call)], second),
    ):
        answer = client.post(RESPONSES, json=body(given, previous_response_id=previous))
        check(answer, 400, None, "input.1.call_id")


@pytest.mark.parametrize("ask", [respond, streamed])
def test_a_client_that_keeps_the_conversation_itself(
    ask: Callable[..., Json], client: TestClient, says: Says, prompts: list[str]
) -> None:
    """Given back as they are, reasoning too, items mean what a chain does."""
    says(CALL, ANSWER, CALL, ANSWER)
    asked: Json = {"tools": [WEATHER], "store": False}
    question: Json = {"role": "user", "content": [{"type": "input_text", "text": "Sunny?"}]}
    first = ask(client, [question], **asked)
    kept = [question, *first["output"], output(first["output"][1])]
    second = ask(client, kept, include=["reasoning.encrypted_content"], **asked)
    assert text_of(second) == "Grüße!"
    stored = respond(client, "Sunny?", tools=[WEATHER])
    result = output(stored["output"][1])
    respond(client, [result], tools=[WEATHER], previous_response_id=stored["id"])
    assert THOUGHT_SHOWN in prompts[1]
    assert prompts[:2] == prompts[2:]
    assert ask(client, [*kept, *second["output"], question], **asked)["status"] == "completed"
    assert FINAL.format("Grüße!") + USER.format("Sunny?") + OPEN in prompts[4]
    assert THOUGHT_SHOWN not in prompts[4]


@pytest.mark.parametrize("ask", [respond, streamed])
def test_what_is_not_to_be_stored_is_not(
    ask: Callable[..., Json], client: TestClient, says: Says, tmp_path: Path
) -> None:
    says(ANSWER)
    response = ask(client, "A secret", store=False)
    assert response["store"] is False
    check(get(client, response["id"]), 404, "response_not_found", "id")
    answer = client.post(RESPONSES, json=body(previous_response_id=response["id"]))
    check(answer, 400, "previous_response_not_found", "previous_response_id")
    reference = [{"type": "item_reference", "id": response["output"][0]["id"]}]
    check(client.post(RESPONSES, json=body(reference)), 404, None, "input.0.id")
    with sqlite3.connect(tmp_path / "data" / "responses.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM responses").fetchone() == (0,)


def test_items_that_are_referred_to(client: TestClient, says: Says, prompts: list[str]) -> None:
    says(CALL, ANSWER)
    first = respond(client, tools=[WEATHER])
    references = [{"id": item["id"]} for item in first["output"]]
    call = first["output"][1]
    given = [{"role": "user", "content": "Hi?"}, *references, output(call)]
    second = respond(client, given, tools=[WEATHER])
    respond(client, [output(call)], tools=[WEATHER], previous_response_id=first["id"])
    assert prompts[1] == prompts[2]
    listed = get(client, f"{second['id']}/input_items", params={"order": "asc"}).json()
    assert listed["data"][2] == call
    for unknown in (f"{call['id']}0", first["id"], "msg_1", "\ud800"):
        answer = client.post(RESPONSES, content=encoded(body([{"id": unknown}])))
        check(answer, 404, None, "input.0.id")


def test_a_disk_that_fails_loses_nothing(
    client: TestClient, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(ANSWER)
    before = respond(client)

    def full(*_: object, **__: object) -> None:
        raise StorageError("its disk is full: free some space")

    store = client.service.store  # type: ignore[attr-defined]
    with monkeypatch.context() as broken:
        broken.setattr(store, "put", full)
        answer = client.post(RESPONSES, json=body(previous_response_id=before["id"]))
        error = check(answer, 503, "storage_failed")
        assert "disk is full" in error["message"]
        found = events(client, previous_response_id=before["id"])
        failed = told([*found[:-2], found[-1]])  # an error is no item's
        assert failed["status"] == "failed"
        assert "disk is full" in failed["error"]["message"]
        assert (found[-2]["type"], found[-2]["code"]) == ("error", "storage_failed")
        for event in found[-2:]:
            _EVENTS.validate_python(event)
        assert text_of(failed) == "Grüße!"  # which the events have told
        assert respond(client, store=False)["status"] == "completed"
    check(get(client, failed["id"]), 404, "response_not_found", "id")
    assert get(client, before["id"]).json() == before
    following = respond(client, previous_response_id=before["id"])
    assert get(client, following["id"]).json() == following


def test_a_locked_database(serve: Serve, says: Says, tmp_path: Path) -> None:
    says(ANSWER)
    client = serve()
    before = respond(client)
    store = client.service.store  # type: ignore[attr-defined]
    store._wait = 0.1  # seconds
    with locked(tmp_path / "data" / "responses.sqlite"):
        for answer in (
            client.post(RESPONSES, json=body()),
            client.delete(f"{RESPONSES}/{before['id']}"),
        ):
            assert "locked" in check(answer, 503, "storage_failed")["message"]
    store._wait = 5.0
    assert get(client, before["id"]).json() == before
    assert client.delete(f"{RESPONSES}/{before['id']}").status_code == 200


def test_input_items_are_paged(client: TestClient, says: Says) -> None:
    says(ANSWER)
    first = respond(client, "not of this one")
    given = [{"role": "user", "content": text} for text in "abcde"]
    response = respond(client, given, previous_response_id=first["id"])

    def page(**params: Any) -> Json:
        found: Json = get(client, f"{response['id']}/input_items", params=params).json()
        assert found["object"] == "list"
        if found["data"]:
            ends = found["data"][0]["id"], found["data"][-1]["id"]
            assert (found["first_id"], found["last_id"]) == ends
        found["texts"] = "".join(item["content"][0]["text"] for item in found["data"])
        return found

    whole = page(order="asc")
    assert (whole["texts"], whole["has_more"]) == ("abcde", False)
    assert whole["data"][0] == {
        "id": whole["first_id"],
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "a"}],
    }
    assert page()["texts"] == "edcba"
    begun = page(limit=2)
    assert (begun["texts"], begun["has_more"]) == ("ed", True)
    ended = page(after=begun["last_id"], limit=3)
    assert (ended["texts"], ended["has_more"]) == ("cba", False)
    assert page(after=whole["last_id"], order="asc")["data"] == []
    for param, wrong in (
        *(("limit", value) for value in (0, 101, -1, "x", "", "²", "9" * 5000)),
        *(("order", value) for value in ("up", "")),
        ("after", "msg_1"),
    ):
        answer = get(client, f"{response['id']}/input_items", params={param: wrong})
        check(answer, 400, None, param)


def test_a_stored_response_is_not_streamed(client: TestClient, says: Says) -> None:
    says(ANSWER)
    response = respond(client)
    check(get(client, response["id"], params={"stream": "true"}), 400, None, "stream")
    assert get(client, response["id"], params={"stream": "false"}).json() == response
    check(get(client, "resp_1"), 404, "response_not_found", "id")
    check(get(client, "%ED%A0%80"), 404, "response_not_found", "id")


def test_instructions_are_one_requests_alone(
    client: TestClient, says: Says, prompts: list[str]
) -> None:
    says(ANSWER)
    given = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "a"}]
    first = respond(client, given, instructions="Be brief.")["id"]
    following = respond(client, "b", previous_response_id=first)
    respond(client, "b", previous_response_id=first, instructions="Be loud.")
    told = "<|start|>developer<|message|># Instructions\n\n{}<|end|>"
    assert prompts[0].startswith(told.format("Be brief.\n\nBe kind."))
    assert prompts[1].startswith(told.format("Be kind."))  # an item, and so part of the chain
    assert prompts[2].startswith(told.format("Be loud.\n\nBe kind."))
    assert following["instructions"] is None


@pytest.mark.parametrize("chained", [True, False])
def test_the_next_turn_computes_only_what_is_new(
    chained: bool, client: TestClient, says: Says, package: Package
) -> None:
    says(CALL, ANSWER)
    asked: Json = {"tools": [WEATHER], "store": chained}
    first = respond(client, "Sunny?", **asked)
    result = output(first["output"][1])
    before = [{"role": "user", "content": "Sunny?"}, *first["output"]]
    if chained:
        asked["previous_response_id"], before = first["id"], []
    usage = respond(client, [*before, result], **asked)["usage"]
    # All but the call's last token, which nobody has fed.
    was = first["usage"]["input_tokens"] + first["usage"]["output_tokens"] - 1
    assert usage["input_tokens_details"]["cached_tokens"] == was
    new = len(encode(package, f"<|call|>{RESULT.format('sunny')}{OPEN}"))
    assert usage["input_tokens"] == was + new
    thought = len(encode(package, THOUGHT.partition("<|end|>")[0]))
    assert usage["output_tokens_details"]["reasoning_tokens"] == thought
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_an_answer_that_was_cut_is_stored_and_gone_on_from(
    client: TestClient, says: Says, prompts: list[str]
) -> None:
    says(ANSWER)
    cut = both(client, "a", max_output_tokens=10)
    assert cut["status"] == "incomplete"
    stored = respond(client, "a", max_output_tokens=10)
    assert get(client, stored["id"]).json() == stored
    respond(client, "b", previous_response_id=stored["id"])
    # Of what was cut in its reasoning there is nothing to go on from.
    assert prompts[-1] == USER.format("a") + USER.format("b") + OPEN
