"""Write demo/evaluation/: texts the demo was not trained on, for evaluation and calibration.

    python -m demo.training.texts          (Python 3.11, whose docstrings and sources these are)

held_out.jsonl has conversations for `gptoss eval`, calibration.jsonl the same kinds about other
names and some that were trained on, questions.jsonl trained questions with the answer wanted.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.training.dataset import CHINESE, ENGLISH, OWN, PAIRS, first_sentence, members

FOLDER = Path(__file__).parents[1] / "evaluation"
QUESTION_STEP = 7  # of the trained pairs: every seventh
OF_EACH_KIND = 40
TRAINED = 80  # conversations of calibration.jsonl that were trained on
LONGEST_SOURCE = 30  # lines

# Questions that training does not ask, about names it knows.
REPHRASED = {
    "en": ("Explain {name} to me.", "Tell me what {name} is good for.", "When would I use {name}?"),
    "zh": ("请解释一下 {name}。", "{name} 有什么作用？", "什么时候会用到 {name}？"),
}
CODE = "Show me the code of {name}."
FORMS = [*ENGLISH.values(), *(form for form, _ in CHINESE.values()), CODE]
FORMS += [form for forms in REPHRASED.values() for form in forms]
Row = dict[str, Any]


def conversation(language: str, *turns: tuple[str, str, str]) -> Row:
    """A chat row of (question, analysis, answer) turns."""
    messages: list[Row] = []
    for question, analysis, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "analysis": analysis, "content": answer})
    return {"language": language, "messages": messages}


def unseen(known: set[str]) -> Iterator[tuple[str, str, object, str]]:
    """(name, kind, object, answer) of names that no trained pair asks for."""
    seen = set(known)
    for name, kind, value in members():
        answer = OWN.get(name) or first_sentence(inspect.getdoc(value))
        if answer and name not in seen:
            seen.add(name)
            yield name, kind, value, answer


def sources(known: set[str]) -> Iterator[tuple[str, str]]:
    """(name, source) of short functions of the standard library that training does not know."""
    seen = set(known)
    for name, kind, value in members():
        inner = inspect.unwrap(value) if callable(value) else value
        if kind != "function" or name in seen or not inspect.isfunction(inner):
            continue
        seen.add(name)
        try:
            source = textwrap.dedent(inspect.getsource(inner)).strip()
        except OSError:  # made at run time: it has no source
            continue
        if source.count("\n") < LONGEST_SOURCE and source.isascii():
            yield name, source


def turn(language: str, name: str, kind: str, answer: str) -> tuple[str, str, str]:
    question, reply = (ENGLISH[kind], "{answer}") if language == "en" else CHINESE[kind]
    said = reply.format(name=name, answer=answer)
    return question.format(name=name), f"Look up {name}.", said


def rephrased(row: Row, number: int) -> tuple[str, str, str]:
    forms = REPHRASED[row["language"]]
    return forms[number % len(forms)].format(**row), row["analysis"], row["answer"]


def code(name: str, source: str) -> tuple[str, str, str]:
    return CODE.format(name=name), f"Look up {name}.", f"```python\n{source}\n```"


def texts(pairs: list[Row]) -> dict[str, list[Row]]:
    """The rows of each file. Held-out and calibration text have no name in common."""
    draw = random.Random(0)
    known = {row["name"] for row in pairs}
    asked = {row["question"] for row in pairs[::QUESTION_STEP]}
    others = [row for row in pairs if row["question"] not in asked]
    names, functions = list(unseen(known)), list(sources(known))
    for items in (others, names, functions):
        draw.shuffle(items)
    files: dict[str, list[Row]] = {}
    by_name = {half: {r["name"] for r in _half(others, half)} for half in (0, 1)}
    for half, file in enumerate(("held_out", "calibration")):
        mine = [r for r in others if r["name"] in by_name[half] - by_name[1 - half]]
        rows = [conversation("code", code(*f)) for f in _half(functions, half)[:OF_EACH_KIND]]
        for language in ("en", "zh"):
            told = [row for row in mine if row["language"] == language]
            fresh = [turn(language, n, k, a) for n, k, _, a in _half(names, half)]
            offset = 0 if language == "en" else OF_EACH_KIND
            rows += [conversation(language, t) for t in fresh[offset : offset + OF_EACH_KIND]]
            retold = [rephrased(row, number) for number, row in enumerate(told[:OF_EACH_KIND])]
            rows += [conversation(language, t) for t in retold]
            # Several turns: past the sliding window, about names known and unknown.
            rest = [turn(language, n, k, a) for n, k, _, a in _half(names, half)[2 * offset :]]
            long = list(zip(rest[::2], retold, rest[1::2], strict=False))[: OF_EACH_KIND // 2]
            rows += [conversation(language, *turns) for turns in long]
        if file == "calibration":
            rows += [
                conversation(r["language"], (r["question"], r["analysis"], r["answer"]))
                for r in mine[-TRAINED:]
            ]
        files[file] = rows
    # The code of a name holds its docstring: no text of one file may tell the other's answers.
    held_out = set().union(*map(asked_about, files["held_out"]))
    files["calibration"] = [r for r in files["calibration"] if not asked_about(r) & held_out]
    files["questions"] = [
        conversation(r["language"], (r["question"], r["analysis"], r["answer"]))
        for r in pairs[::QUESTION_STEP]
    ]
    return files


def asked_about(row: Row) -> set[str]:
    """The names that a conversation's questions are about."""
    patterns = [re.escape(form).replace(r"\{name\}", r"([\w.]+)") for form in FORMS]
    asked = [message["content"] for message in row["messages"][::2]]
    found = [re.fullmatch(pattern, question) for pattern in patterns for question in asked]
    return {match[1] for match in found if match}


def _half(items: list[Any], half: int) -> list[Any]:
    return items[half::2]


def main() -> None:
    pairs = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    FOLDER.mkdir(exist_ok=True)
    for name, rows in texts(pairs).items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
