"""The demo's evaluation texts: well-formed, unseen in training, and apart from each other."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from demo.training.dataset import CHINESE, ENGLISH, PAIRS
from demo.training.texts import QUESTION_STEP, REPHRASED, conversation
from gptoss_onnx.evaluation.texts import Passage, read_passages
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.tokenizer import Tokenizer
from tests.conftest import DEMO

FOLDER = DEMO / "evaluation"
FILES = ("held_out", "calibration", "questions")
CODE = "Show me the code of {name}."
# Forms of a question that training has too; what they ask for must then be new.
TRAINED_FORMS = [*ENGLISH.values(), *(question for question, _ in CHINESE.values())]
NEW_FORMS = [CODE, *(form for forms in REPHRASED.values() for form in forms)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@cache
def rows(file: str) -> list[dict[str, Any]]:
    return lines(FOLDER / f"{file}.jsonl")


@cache
def pairs() -> list[dict[str, Any]]:
    return lines(PAIRS)


@cache
def passages(file: str) -> list[Passage]:
    config = json.loads((DEMO / "config.json").read_text("utf-8"))
    context = config["max_position_embeddings"]
    return read_passages(FOLDER / f"{file}.jsonl", Harmony(Tokenizer(DEMO)), context)


def said(file: str) -> list[tuple[str, str]]:
    """(question, answer) of every turn."""
    turns = []
    for row in rows(file):
        asked, told = row["messages"][::2], row["messages"][1::2]
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * len(asked)
        turns += [(q["content"], a["content"]) for q, a in zip(asked, told, strict=True)]
    return turns


def name_in(question: str) -> tuple[str, bool]:
    """The name a question asks for, and whether training asks in that form."""
    for form in (*NEW_FORMS, *TRAINED_FORMS):
        found = re.fullmatch(re.escape(form).replace(r"\{name\}", r"([\w.]+)"), question)
        if found:
            return found[1], form in TRAINED_FORMS
    raise AssertionError(f"no known form: {question}")


@pytest.mark.parametrize("file", FILES)
def test_every_conversation_fits_the_context_and_counts(file: str) -> None:
    assert all(
        passage.tokens > 0 for passage in passages(file)
    )  # read_passages refuses longer ones
    assert len(passages(file)) == len(rows(file))


def test_held_out_has_languages_lengths_and_turns() -> None:
    tokens: Counter[str] = Counter()
    for passage in passages("held_out"):
        tokens[passage.language] += passage.tokens
    assert set(tokens) == {"en", "zh", "code"}
    assert min(tokens.values()) > 2_000
    assert 8_000 < tokens.total() < 40_000
    assert 150 <= len(passages("held_out")) <= 250
    assert (FOLDER / "held_out.jsonl").stat().st_size < 300_000
    window = json.loads((DEMO / "config.json").read_text("utf-8"))["sliding_window"]
    assert sum(len(passage.ids) > 2 * window for passage in passages("held_out")) >= 10
    assert sum(len(row["messages"]) > 2 for row in rows("held_out")) >= 20


def test_held_out_was_not_trained_on() -> None:
    trained = {pair["question"] for pair in pairs()}
    known = {pair["name"] for pair in pairs()}
    for question, _ in said("held_out"):
        assert question not in trained
        name, trained_form = name_in(question)
        if trained_form or question == CODE.format(name=name):
            assert name not in known


def test_rephrased_questions_have_the_trained_answers() -> None:
    answers = {(pair["name"], pair["language"]): pair["answer"] for pair in pairs()}
    checked = 0
    for question, answer in said("held_out") + said("calibration"):
        name, _ = name_in(question)
        for language, forms in REPHRASED.items():
            if question in [form.format(name=name) for form in forms]:
                assert answer == answers[name, language]
                checked += 1
    assert checked > 100


def test_the_three_files_share_no_conversation_and_no_question() -> None:
    questions = {file: {question for question, _ in said(file)} for file in FILES}
    assert not questions["held_out"] & questions["calibration"]
    assert not questions["held_out"] & questions["questions"]
    assert not questions["calibration"] & questions["questions"]
    names = {file: {name_in(q)[0] for q in questions[file]} for file in FILES}
    assert not names["held_out"] & names["calibration"]


def test_questions_are_every_seventh_pair_word_for_word() -> None:
    wanted = [
        conversation(p["language"], (p["question"], p["analysis"], p["answer"]))
        for p in pairs()[::QUESTION_STEP]
    ]
    assert rows("questions") == wanted
    assert len(wanted) == 300
