"""Exact answers, harmony that parses and flips, counted over replies made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptoss_onnx.evaluation.generation import Question, compare_replies, read_questions
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Harmony

ANSWER = "Paris is the capital of France."
OWN = 7  # a stop of the package's own


@pytest.fixture(scope="module")
def stops(harmony: Harmony) -> frozenset[int]:
    return harmony.stop_ids | {OWN}


@pytest.fixture(scope="module")
def reply(harmony: Harmony) -> dict[str, list[int]]:
    """Replies to one question, by what is right or wrong with them."""
    tokens = harmony.tokenizer
    special = tokens.special
    analysis = [special("<|channel|>"), *tokens.encode("analysis"), special("<|message|>")]
    analysis += [*tokens.encode("France has one."), special("<|end|>")]
    start = [special("<|start|>"), *tokens.encode("assistant")]

    def final(text: str) -> list[int]:
        opening = [special("<|channel|>"), *tokens.encode("final"), special("<|message|>")]
        return [*opening, *tokens.encode(text), special("<|return|>")]

    return {
        "right": [*analysis, *start, *final(ANSWER)],
        "right at once": final(ANSWER),
        "wrong": [*analysis, *start, *final("Lyon.")],
        "with a space": final(ANSWER + " "),
        "its own stop": [*final(ANSWER)[:-1], OWN],
        "cut off": [*analysis, *start, *final(ANSWER)][:-1],
        "analysis alone": [*analysis[:-1], special("<|return|>")],
        "no channel": [*tokens.encode(ANSWER), special("<|return|>")],
        "nothing": [],
    }


@pytest.mark.parametrize(
    ("kind", "exact", "parsed"),
    [
        ("right", 1, 1),
        ("right at once", 1, 1),
        ("its own stop", 1, 1),
        ("wrong", 0, 1),
        ("with a space", 0, 1),
        ("cut off", 0, 0),
        ("analysis alone", 0, 0),
        ("no channel", 0, 0),
        ("nothing", 0, 0),
    ],
)
def test_one_reply(
    harmony: Harmony,
    stops: frozenset[int],
    reply: dict[str, list[int]],
    kind: str,
    exact: int,
    parsed: int,
) -> None:
    question = [Question((), ANSWER)]
    found = compare_replies(question, [reply[kind]], [reply["right"]], harmony, stops)
    assert (found["exact"]["package"], found["exact"]["reference"]) == (exact, 1)
    assert (found["parsed"]["package"], found["parsed"]["reference"]) == (parsed, 1)
    # A flip is another reply, not a worse one: the right answer without its analysis is one.
    assert found["flips"]["mean"] == (kind != "right")
    # The other way round it is the reference that failed.
    turned = compare_replies(question, [reply["right"]], [reply[kind]], harmony, stops)
    assert (turned["exact"]["package"], turned["exact"]["reference"]) == (1, exact)
    assert (turned["parsed"]["package"], turned["parsed"]["reference"]) == (1, parsed)


def test_shares_of_many(
    harmony: Harmony, stops: frozenset[int], reply: dict[str, list[int]]
) -> None:
    ours = [reply[kind] for kind in ("right", "right", "wrong", "cut off", "right at once")]
    theirs = [reply[kind] for kind in ("right", "wrong", "wrong", "right", "right")]
    found = compare_replies([Question((), ANSWER)] * 5, ours, theirs, harmony, stops)
    assert found["questions"] == 5
    assert (found["exact"]["package"], found["exact"]["reference"]) == (0.6, 0.6)
    assert found["parsed"] == {"package": 0.8, "reference": 1.0}
    assert found["flips"]["mean"] == 0.6
    for interval, mean in ((found["exact"]["ci"], 0.6), (found["flips"]["ci"], 0.6)):
        assert 0 <= interval[0] < mean < interval[1] <= 1


def test_each_reply_is_held_to_its_own_question(
    harmony: Harmony, stops: frozenset[int], reply: dict[str, list[int]]
) -> None:
    questions = [Question((), ANSWER), Question((), "Lyon.")]
    replies = [reply["right"], reply["wrong"]]
    right = compare_replies(questions, replies, replies, harmony, stops)
    swapped = compare_replies(questions, replies[::-1], replies, harmony, stops)
    assert (right["exact"]["package"], right["flips"]["mean"]) == (1, 0)
    assert (swapped["exact"]["package"], swapped["flips"]["mean"]) == (0, 1)


def write(path: Path, *answers: str, role: str = "assistant") -> Path:
    rows = []
    for answer in answers:
        messages = [
            {"role": "user", "content": f"Say {answer}."},
            {"role": role, "content": answer},
        ]
        rows.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_questions_end_before_the_answer(harmony: Harmony, tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path / "one.jsonl", "Lyon"), harmony, 100)
    assert question.answer == "Lyon"
    shown = harmony.tokenizer.decode(question.prompt)
    assert "Say Lyon." in shown
    assert "2026-01-01" in shown
    # The reply begins behind the assistant's name: the model chooses the channel.
    start = harmony.tokenizer.special("<|start|>")
    reply = [start, *harmony.tokenizer.encode("assistant")]
    assert list(question.prompt[-len(reply) :]) == reply
    assert question.prompt.count(start) == 3


@pytest.mark.parametrize(
    ("limit", "wanted"), [(100, "0123456789"), (10, "0123456789"), (5, "02468"), (3, "048")]
)
def test_a_limit_spreads(harmony: Harmony, tmp_path: Path, limit: int, wanted: str) -> None:
    path = write(tmp_path / "ten.jsonl", *"0123456789")
    assert "".join(q.answer for q in read_questions(path, harmony, limit)) == wanted


def test_questions_without_answers(harmony: Harmony, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ends with the answer wanted"):
        read_questions(write(tmp_path / "asked.jsonl", "Lyon", role="user"), harmony, 9)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl: "):
        read_questions(empty, harmony, 9)
