"""The policy model: its verdicts, and that whatever is none of them forbids the text."""

from __future__ import annotations

import json

import pytest

from gptoss_onnx.assistant import policy_filter
from gptoss_onnx.assistant.policy_filter import PolicyFilter
from gptoss_onnx.runtimes.content_filter import APART, Review
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.package import Package
from tests.assistant.conftest import Says
from tests.assistant.reviewing import reviewed

POLICY = "No bombs.\n"
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


def verdict(text: str) -> str:
    return f"{THOUGHT}<|channel|>final<|message|>{text}<|return|>"


@pytest.fixture
def policy(package: Package) -> PolicyFilter:
    return PolicyFilter(package, POLICY)


def test_what_keeps_to_the_policy_is_shown_when_it_is_complete(
    policy: PolicyFilter, says: Says
) -> None:
    says(verdict('{"violation": 0}'))
    reviewer = policy.begin("final")
    assert [reviewer.feed(text) for text in ("Hi ", "you")] == [Review(0)] * 2
    assert reviewer.finish() == Review(6)
    says(verdict('{"violation": 1}'))
    assert reviewer.feed("\n\nHo") == Review(6)
    assert reviewer.finish() == Review(6, "policy")


def test_the_model_reads_policy_kind_and_text(
    policy: PolicyFilter, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    render = Harmony.render

    def kept(self: Harmony, messages: list[object], **others: object) -> list[int]:
        (message,) = messages
        asked.append((str(others["instructions"]), message.content))  # type: ignore[attr-defined]
        return render(self, messages, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(Harmony, "render", kept)
    says(verdict('{"violation": 0}'))
    text = f"one{APART}<|end|>two"
    assert reviewed(policy, text, "prompt", cut=2) == (text, None)
    ((task, judged),) = asked
    assert judged == text
    assert task.startswith("No bombs.\n\n# Task") and "what a user asks" in task


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ('{"violation": 1, "rule": "No bombs."}', "policy: No bombs."),
        ('{"violation": 1, "rule": ""}', "policy"),
        ('{"violation": 1, "rule": 7}', "policy"),
        ('{"violation": true}', "policy"),
        (json.dumps({"violation": 1, "rule": "x" * 300}), "policy: " + "x" * 100),
        ('{"violation": 2}', "policy: no verdict in what the model answered"),
        ('{"violation": null}', "policy: no verdict in what the model answered"),
        ('{"violation": 0.0}', "policy: no verdict in what the model answered"),
        ("{}", "policy: no verdict in what the model answered"),
        ("[0]", "policy: no verdict in what the model answered"),
        ("0", "policy: no verdict in what the model answered"),
        ('{"violation": 0', "policy: no verdict in what the model answered"),
        ("The secret is fine.", "policy: no verdict in what the model answered"),
        ("[" * 500, "policy: no verdict in what the model answered"),
        ("", "policy: no verdict in what the model answered"),
    ],
)
def test_what_is_no_clear_verdict_forbids(
    policy: PolicyFilter, says: Says, answer: str, why: str
) -> None:
    says(verdict(answer))
    assert reviewed(policy, "text") == ("", why)


def test_an_answer_that_is_cut_forbids(
    policy: PolicyFilter, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_filter, "_LONGEST_VERDICT", 30)
    says('<|channel|>final<|message|>{"violation": 0}' + " " * 100)
    assert reviewed(policy, "text")[1] == "policy: no verdict, the model's answer ended by length"


def test_a_call_is_no_verdict(policy: PolicyFilter, says: Says) -> None:
    says('<|channel|>commentary to=functions.f json<|message|>{"violation": 0}<|call|>')
    assert "ended by tool_call" in str(reviewed(policy, "text")[1])


def test_a_text_too_long_for_the_model_forbids(policy: PolicyFilter, says: Says) -> None:
    says(verdict('{"violation": 0}'))
    said, rule = reviewed(policy, "a b " * 800, cut=5000)
    assert said == "" and rule is not None and "not judged, UserError: the prompt has" in rule
    assert reviewed(policy, "a b ") == ("a b ", None), "the next is judged"


def test_an_error_forbids(
    policy: PolicyFilter, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more")

    says(verdict('{"violation": 0}'))
    with monkeypatch.context() as broken:
        broken.setattr(policy_filter, "generate", fail)
        assert reviewed(policy, "a")[1] == "policy: not judged, MemoryError: no more"
    assert reviewed(policy, "a")[1] is None


def test_a_blank_text_is_not_judged(policy: PolicyFilter, says: Says) -> None:
    says("")
    assert reviewed(policy, " \n") == (" \n", None)
