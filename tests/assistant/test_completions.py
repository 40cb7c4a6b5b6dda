"""Text that goes on from a prompt, streamed and not."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient

from gptoss_onnx.runtimes.package import Package
from tests.assistant.asking import chunks
from tests.assistant.conftest import MODEL, Says
from tests.runtimes.conftest import TinyModel

PATH = "/v1/completions"


def complete(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    """The choices, found equal streamed and not."""
    given = {"model": MODEL, "prompt": "Once", **fields}
    whole = client.post(PATH, json=given)
    assert whole.status_code == 200, whole.text
    assert whole.json()["object"] == "text_completion"
    choices: list[dict[str, Any]] = whole.json()["choices"]
    events = chunks(client.post(PATH, json={**given, "stream": True}).text)
    for choice in choices:
        own = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]
        told = [token for c in own for token in (c["logprobs"] or {"tokens": []})["tokens"]]
        assert told == (choice["logprobs"] or {"tokens": []})["tokens"]
    return choices


def test_it_goes_on_as_the_model_does(client: TestClient, package: Package) -> None:
    prompt = list(b"Once upon a time")
    greedy = TinyModel.random().greedy(prompt, 8)
    found = complete(client, prompt=prompt, max_tokens=8, temperature=0)
    assert found[0]["text"] == package.tokenizer.decode(greedy)
    assert found[0]["finish_reason"] == "length"


def test_prompts_in_every_shape(client: TestClient, says: Says) -> None:
    says("ab<|return|>")
    for prompt, count in (("a", 1), (["a", "b"], 2), ([97], 1), ([[97], [98], [99]], 3)):
        found = complete(client, prompt=prompt)
        assert [choice["text"] for choice in found] == ["ab"] * count
        assert [choice["index"] for choice in found] == list(range(count))
        assert {choice["finish_reason"] for choice in found} == {"stop"}


def test_marks_in_a_prompt_stay_text(client: TestClient, says: Says, package: Package) -> None:
    says("a<|return|>")
    mark = "<|start|>"
    answer = client.post(PATH, json={"model": MODEL, "prompt": mark})
    assert answer.json()["usage"]["prompt_tokens"] == len(mark)
    ids = [package.tokenizer.special(mark)]
    answer = client.post(PATH, json={"model": MODEL, "prompt": ids})
    assert answer.json()["usage"]["prompt_tokens"] == 1


def test_several_of_several(client: TestClient, says: Says) -> None:
    says("a<|return|>")
    given = {"model": MODEL, "prompt": ["xy", "z"], "n": 2}
    answer = client.post(PATH, json=given).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 8


def test_stop_and_echo(client: TestClient, says: Says) -> None:
    says("abcdef<|return|>")
    assert complete(client, stop="de")[0]["text"] == "abc"
    assert complete(client, stop=["x", "efg"])[0]["text"] == "abcdef"
    assert complete(client, echo=True, stop="b")[0]["text"] == "Oncea"


def test_log_probabilities(client: TestClient, says: Says) -> None:
    says("abc<|return|>")
    told = complete(client, logprobs=2)[0]["logprobs"]
    assert told["tokens"] == ["a", "b", "c"]
    assert told["text_offset"] == [0, 1, 2]
    assert all(value < 0 for value in told["token_logprobs"])
    assert [len(top) for top in told["top_logprobs"]] == [2, 2, 2]
    assert complete(client)[0]["logprobs"] is None


def test_bytes_of_one_character_stay_together(client: TestClient, says: Says) -> None:
    says("Grüße 你好<|return|>")
    assert complete(client)[0]["text"] == "Grüße 你好"


def test_as_many_tokens_as_are_asked_for(client: TestClient, says: Says) -> None:
    says("ab<|return|>cd<|return|>")
    (choice,) = complete(client, ignore_eos=True, max_tokens=5)
    assert (choice["text"], choice["finish_reason"]) == ("abcd", "length")
