"""Texts and ids at o200k_harmony's real size that the apps' cores are held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.corpus import corpus, letters
from tests.o200k import VOCAB_SIZE, expected_ids, reference

Json = dict[str, Any]
MILLION = 1_000_000


def _ids(text: str) -> list[int]:
    return list(reference().encode(text, add_special_tokens=False).ids)


def _cases(cases: list[Json]) -> Json:
    return {"vocab_size": VOCAB_SIZE, "cases": cases}


def real_size_cases() -> Json:
    """The corpus, and words that only n log n gets through."""
    known = list(zip(corpus(), expected_ids(), strict=True))
    known += [(text, _ids(text)) for text in (letters(MILLION), "a" * MILLION)]
    return _cases([{"text": text, "ids": ids, "decoded": text} for text, ids in known])


def halves() -> Json:
    """Texts with half a surrogate pair, which Swift's strings cannot hold."""
    made = []
    for half in ("a\ud83cb", "\udf89", "\ud83c\ud83c\udf89", "\udf89\ud83c"):
        whole = half.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        made.append({"text": half, "ids": _ids(whole), "decoded": whole})
    return _cases(made)


def compared(file: Path) -> int:
    """How much a file of cases, or tokenizer_files.json, compares."""
    content = json.loads(file.read_text())
    if "cases" in content:
        return 2 * len(content["cases"])
    texts = sum(len(case["encode"]) + 2 * len(case["decode"]) for case in content["read"])
    return texts + len(content["damaged"])
