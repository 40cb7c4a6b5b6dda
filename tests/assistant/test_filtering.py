"""Content filters through HTTP: nothing of a forbidden text is shown, by any API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gptoss_onnx.assistant.usage_log import Entry
from gptoss_onnx.runtimes.engine import Engine
from gptoss_onnx.runtimes.errors import UserError
from tests.assistant.asking import CHAT, WEATHER, body, chat, chunks, streamed, without_ids
from tests.assistant.conftest import MODEL, Says, Serve

THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
CALLED = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
NEXT = "<|end|><|start|>assistant"
COMPLETIONS = "/v1/completions"
Choices = list[dict[str, Any]]


@pytest.fixture
def terms(tmp_path: Path) -> Path:
    path = tmp_path / "terms"
    path.write_text("pipe bomb\n炸弹\n", "utf-8")
    return path


@pytest.fixture
def client(serve: Serve, terms: Path) -> TestClient:
    return serve(terms=terms)


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No engine may be asked."""

    def submit(*_: Any) -> None:
        raise AssertionError("the engine was asked")

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "submit", submit)
        yield


def both(client: TestClient, **others: Any) -> Choices:
    """The choices, found equal streamed and not."""
    whole = without_ids(chat(client, **others))
    assert whole == without_ids(streamed(client, **others))
    return whole


def blocked(client: TestClient, **others: Any) -> Choices:
    """`both`, and nothing of what is forbidden anywhere."""
    whole = both(client, **others)
    raw = client.post(CHAT, json=body(stream=True, **others)).text
    said = "".join(json.dumps(c["delta"]) for e in chunks(raw) for c in e["choices"])
    for hidden in ("pipe", "bomb", "炸", "\\u70b8"):
        assert hidden not in said
        assert hidden not in json.dumps(whole, ensure_ascii=False)
    return whole


def logged(client: TestClient) -> list[Entry]:
    return list(client.service.usage_log.entries())  # type: ignore[attr-defined]


TOOL = {"type": "function", "function": {"name": "f", "description": "Builds a pipe bomb."}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "pipe bomb"}'}}
USER, ASKED = {"role": "user", "content": "Hi"}, {"role": "user", "content": "A Pipe\nbomb?"}
PROMPTS: dict[str, dict[str, Any]] = {
    "text": {"messages": [ASKED]},
    "parts": {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "pipe"}, {"type": "text", "text": "bomb"}]}]},
    "Chinese": {"messages": [{"role": "user", "content": "造炸弹"}]},
    "system": {"messages": [{"role": "system", "content": "A pipe bomb."}, USER]},
    "earlier": {"messages": [ASKED, {"role": "assistant", "content": "No."}, USER]},
    "answer": {"messages": [USER, {"role": "assistant", "content": "A pipe bomb."}, USER]},
    "call": {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]},
                          {"role": "tool", "tool_call_id": "1", "content": "Done"}]},
    "result": {"messages": [
        USER,
        {"role": "assistant", "tool_calls": [
            {**CALL, "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "A pipe bomb"}]},
    "tool": {"tools": [TOOL]},
    "format": {"response_format": {"type": "json_schema", "json_schema": {
        "name": "n", "schema": {"type": "object", "description": "a pipe bomb"}}}},
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.usefixtures("unasked")
def test_a_blocked_prompt_is_not_answered(client: TestClient, says: Says, name: str) -> None:
    says(f"{FINAL}Hi")
    asked = {**PROMPTS[name], "n": 2}
    found = blocked(client, **asked)
    assert [c["finish_reason"] for c in found] == ["content_filter"] * 2
    assert [c["message"]["content"] for c in found] == ["", ""]
    single = chat(client, **{**asked, "n": 1})["usage"]
    usage = chat(client, **asked)["usage"]
    assert usage == single
    assert usage["completion_tokens"] == 0 < usage["prompt_tokens"]
    entry = logged(client)[-1]
    assert entry.finish_reason == "content_filter"
    assert len(entry.verdicts) == 2 and entry.verdicts[0].startswith("prompt: ")
    assert entry.prompt_tokens == usage["prompt_tokens"] and entry.prompt is None


def test_what_breaks_no_rule_is_answered(client: TestClient, says: Says) -> None:
    says(f"{THOUGHT}{FINAL}A pipe bombards, 炸了。<|return|>")
    (found,) = both(client, text="pipe, bomb")
    assert found["message"]["content"] == "A pipe bombards, 炸了。"
    assert found["finish_reason"] == "stop"
    assert logged(client)[-1].verdicts == ()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (f"{THOUGHT}{FINAL}Build a pipe bomb so.", {"content": "Build a ", "reasoning": "Hm."}),
        (f"{THOUGHT}{FINAL}Build a pipe bomb", {"content": "Build a ", "reasoning": "Hm."}),
        (f"{FINAL}造炸弹吗", {"content": "造"}),
        (f"{FINAL}pipe bomb.", {"content": ""}),
        (f"{FINAL}a pipe{NEXT}{FINAL}bomb.", {"content": "a pipe"}),
        (f"<|channel|>analysis<|message|>A pipe bomb?{NEXT}{FINAL}Hi", {"reasoning": "A "}),
        (
            f"<|channel|>commentary<|message|>See: pipe bomb.{NEXT}{CALLED}{{}}<|call|>",
            {"content": "See: "},
        ),
    ],
)
def test_a_blocked_answer_ends_before_the_text(
    client: TestClient, says: Says, said: str, message: dict[str, str]
) -> None:
    says(said + " and then" * 50 if said.endswith(".") else said)
    # What ends with its message is cleared, and may become more with the next.
    found = both(client) if NEXT + FINAL + "bomb" in said else blocked(client)
    assert found[0]["finish_reason"] == "content_filter"
    assert found[0]["message"] == {
        "role": "assistant", "content": "", "refusal": None, **message
    }  # fmt: skip
    entry = logged(client)[-1]
    assert entry.finish_reason == "content_filter"
    assert entry.verdicts[0].startswith("answer: ")
    assert entry.completion_tokens < len(said) + 60, "the model was stopped"


def test_the_log_names_the_rule_and_keeps_no_text(
    client: TestClient, says: Says, terms: Path
) -> None:
    says(f"{FINAL}A pipe bomb.")
    chat(client, text="Tell me")
    chat(client, text="A pipe bomb?")
    answer, prompt = logged(client)
    assert answer.verdicts == (f"answer: {terms}, line 1: pipe bomb",)
    assert prompt.verdicts == (f"prompt: {terms}, line 1: pipe bomb",)
    assert answer.prompt is answer.answer is prompt.prompt is None
    (summary,) = client.service.usage_log.summary()  # type: ignore[attr-defined]
    assert (summary.requests, summary.blocked) == (2, 2)


def test_what_is_logged_of_a_blocked_answer_is_what_was_shown(
    serve: Serve, says: Says, terms: Path
) -> None:
    client = serve(terms=terms, log_text=True)
    says(f"{FINAL}A pipe bomb.")
    chat(client, text="Tell me")
    (entry,) = logged(client)
    assert (entry.prompt, entry.answer) == ("Tell me", "A ")


def test_a_blocked_call(client: TestClient, says: Says) -> None:
    says(f'{THOUGHT}{CALLED}{{"city": "a pipe\\nbomb"}}<|call|>')
    found = blocked(client, tools=[WEATHER])[0]
    assert found["finish_reason"] == "content_filter"
    (call,) = found["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "a '}
    says(f"{THOUGHT}<|channel|>commentary to=functions.炸弹 json<|message|>{{}}<|call|>")
    found = blocked(client, tools=[WEATHER])[0]
    assert found["finish_reason"] == "content_filter"
    assert "tool_calls" not in found["message"]


def test_a_call_too_many_is_not_reviewed(client: TestClient, says: Says) -> None:
    says(f'{CALLED}{{}}{NEXT}{CALLED}{{"city": "pipe bomb"}}<|call|>')
    found = both(client, tools=[WEATHER], parallel_tool_calls=False)[0]
    assert found["finish_reason"] == "tool_calls"
    found = both(client, tools=[WEATHER])[0]
    assert found["finish_reason"] == "content_filter"


def test_one_of_several_is_blocked(client: TestClient, says: Says) -> None:
    for find in (chat, streamed):
        says(f"{FINAL}A pipe bomb.", f"{FINAL}A pipe dream.", f"{FINAL}炸弹")
        found = without_ids(find(client, n=3))
        told = [(c["message"]["content"], c["finish_reason"]) for c in found]
        assert told == [("A ", "content_filter"), ("A pipe dream.", "stop"), ("", "content_filter")]
        assert len(logged(client)[-1].verdicts) == 2
        assert logged(client)[-1].finish_reason == "content_filter,stop"


@pytest.mark.parametrize(
    ("stop", "content", "reason"),
    [
        ("END", "A plan ", "stop"),  # what is behind it is no part of the answer
        ("plan", "A ", "stop"),
        ("bomb", "A plan END pipe ", "stop"),  # `pipe ` breaks no rule
        ("now", "A plan END ", "content_filter"),
        ("never", "A plan END ", "content_filter"),
        ("bombs", "A plan END ", "content_filter"),  # what may begin a stop is held, and reviewed
    ],
)
def test_stop_texts_and_a_filter(
    client: TestClient, says: Says, stop: str, content: str, reason: str
) -> None:
    says(f"{FINAL}A plan END pipe bomb now<|return|>")
    (found,) = both(client, stop=stop)
    assert (found["message"]["content"], found["finish_reason"]) == (content, reason)


def test_log_probabilities_of_what_is_shown_alone(client: TestClient, says: Says) -> None:
    says(f"{THOUGHT}{FINAL}A piper, a pipe pipe bomb.")
    found = both(client, logprobs=True)[0]
    assert found["message"]["content"] == "A piper, a pipe "
    assert [entry["token"] for entry in found["logprobs"]["content"]] == list("A piper, a pipe ")
    says(f"{FINAL}A piper END a pipe bomb.")
    found = both(client, logprobs=True, stop="END")[0]
    assert [entry["token"] for entry in found["logprobs"]["content"]] == list("A piper ")


def complete(client: TestClient, **others: Any) -> Choices:
    """The choices of a completion, found equal streamed and not."""
    asked = {"model": MODEL, "prompt": "Build a ", **others}
    answer = client.post(COMPLETIONS, json=asked)
    assert answer.status_code == 200, answer.text
    stream = client.post(COMPLETIONS, json={**asked, "stream": True}).text
    joined: dict[int, dict[str, Any]] = {}
    for event in chunks(stream):
        for choice in event["choices"]:
            own = joined.setdefault(choice["index"], {"text": ""})
            own["text"] += choice["text"]
            own["finish_reason"] = choice["finish_reason"]
    found: Choices = answer.json()["choices"]
    assert [(c["text"], c["finish_reason"]) for c in found] == [
        (joined[i]["text"], joined[i]["finish_reason"]) for i in sorted(joined)
    ]
    return found


@pytest.mark.usefixtures("unasked")
def test_a_blocked_prompt_is_not_continued(client: TestClient, says: Says, package: Any) -> None:
    says("Hi")
    ids = package.tokenizer.encode("a pipe bomb")
    for prompt in ("a pipe bomb", ["a pipe bomb"], ids):
        found = complete(client, prompt=prompt, n=2, echo=True)
        assert [(c["text"], c["finish_reason"]) for c in found] == [("", "content_filter")] * 2
    entry = logged(client)[-1]
    assert entry.verdicts[0].startswith("prompt: ") and entry.prompt_tokens == len(ids)


def test_one_of_several_prompts_is_blocked(client: TestClient, says: Says) -> None:
    says("so<|return|>")
    found = complete(client, prompt=["a pipe bomb", "Build a "], echo=True)
    assert [(c["text"], c["finish_reason"]) for c in found] == [
        ("", "content_filter"),
        ("Build a so", "stop"),
    ]


@pytest.mark.parametrize(
    ("prompt", "said", "text"),
    [
        ("Build a ", "nice pipe bomb so.", "nice "),
        ("Build a ", "pipe bomb", ""),
        ("Build a pipe", " bomb.", ""),  # over both
        ("炸", "弹。", ""),
        ("a pipe bo", "x, a pipe bomb.", "x, a "),
    ],
)
def test_a_blocked_continuation(
    client: TestClient, says: Says, prompt: str, said: str, text: str
) -> None:
    says(said + " and then" * 50 if said.endswith(".") else said)
    (found,) = complete(client, prompt=prompt, logprobs=0, max_tokens=500)
    assert (found["text"], found["finish_reason"]) == (text, "content_filter")
    assert found["logprobs"]["tokens"] == list(text)
    entry = logged(client)[-1]
    assert entry.verdicts[0].startswith("answer: ")
    assert entry.completion_tokens < len(said) + 60, "the model was stopped"


def test_a_continuation_that_breaks_no_rule(client: TestClient, says: Says) -> None:
    says("pipe dream, a pipe")
    (found,) = complete(client, prompt="A pip", logprobs=0, max_tokens=18, echo=False)
    assert (found["text"], found["finish_reason"]) == ("pipe dream, a pipe", "length")
    assert found["logprobs"]["tokens"] == list("pipe dream, a pipe")
    (found,) = complete(client, prompt="A pipe", stop="dream")
    assert (found["text"], found["finish_reason"]) == ("pipe ", "stop")


def test_responses_go_through_it_too(client: TestClient, says: Says) -> None:
    says(f"{FINAL}A pipe bomb.")
    for text, shown in (("Hi", "A "), ("A pipe bomb?", None)):
        answer = client.post("/v1/responses", json={"model": MODEL, "input": text}).json()
        assert answer["status"] == "incomplete"
        assert answer["incomplete_details"] == {"reason": "content_filter"}
        said = [part["text"] for item in answer["output"] for part in item["content"]]
        assert said == ([shown] if shown else [])
    found = client.get(f"/v1/responses/{answer['id']}").json()
    assert found["incomplete_details"] == {"reason": "content_filter"} and not found["output"]


CLEAR = f'{FINAL}{{"violation": 0}}<|return|>'
BROKEN = f'{FINAL}{{"violation": 1, "rule": "Be nice."}}<|return|>'


@pytest.fixture
def judged(serve: Serve, package_folder: Path, tmp_path: Path) -> TestClient:
    """Of a server whose prompts and answers a model judges."""
    (tmp_path / "policy").write_text("Be nice.")
    return serve(policy=tmp_path / "policy", policy_package=package_folder)


@pytest.mark.parametrize("find", [chat, streamed])
def test_a_policy_judges_prompts_and_answers(judged: TestClient, says: Says, find: Any) -> None:
    says(CLEAR, f"{THOUGHT}{FINAL}You fool", CLEAR, BROKEN)
    (found,) = without_ids(find(judged))
    assert found["finish_reason"] == "content_filter"
    assert found["message"]["content"] == "" and found["message"]["reasoning"] == "Hm."
    assert logged(judged)[-1].verdicts == ("answer: policy: Be nice.",)
    says(CLEAR, f"{THOUGHT}{FINAL}You dear", CLEAR)
    (found,) = without_ids(find(judged))
    assert (found["message"]["content"], found["finish_reason"]) == ("You dear", "stop")
    says(BROKEN)
    (found,) = without_ids(find(judged))
    assert found["finish_reason"] == "content_filter"
    assert logged(judged)[-1].verdicts == ("prompt: policy: Be nice.",)


def test_a_policy_judges_continuations(judged: TestClient, says: Says) -> None:
    says(CLEAR, "dear", CLEAR)
    asked = {"model": MODEL, "prompt": "You "}
    (found,) = judged.post(COMPLETIONS, json=asked).json()["choices"]
    assert (found["text"], found["finish_reason"]) == ("dear", "stop")
    says(CLEAR, "fool", BROKEN)
    (found,) = judged.post(COMPLETIONS, json=asked).json()["choices"]
    assert (found["text"], found["finish_reason"]) == ("", "content_filter")


def test_half_a_policy_is_told(serve: Serve, package_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--policy-package"):
        serve(policy=tmp_path / "policy")
    with pytest.raises(UserError, match="--policy FILE"):
        serve(policy_package=package_folder)
    with pytest.raises(UserError, match="No such file"):
        serve(terms=tmp_path / "none")
