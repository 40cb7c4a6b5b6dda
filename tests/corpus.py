"""Texts that tokenizers are compared on: over 6,000 of many kinds, deterministic."""

from __future__ import annotations

import random
import sysconfig
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Inclusive ranges of code points.
ALPHABETS = {
    "ascii": [(0x20, 0x7E)],
    "latin": [(0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x300, 0x36F), (0x20, 0x20)],
    "greek and cyrillic": [(0x370, 0x377), (0x391, 0x3A1), (0x3B1, 0x3C9), (0x400, 0x4FF)],
    "hebrew and arabic": [(0x5D0, 0x5EA), (0x620, 0x64A), (0x660, 0x669), (0x20, 0x20)],
    "indic": [(0x900, 0x97F), (0xB80, 0xBFF), (0xE01, 0xE3A)],
    "african and caucasian": [(0x1200, 0x1357), (0x10D0, 0x10FA), (0x531, 0x556), (0x20, 0x20)],
    "cjk": [(0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)],
    "emoji": [(0x1F300, 0x1F6FF), (0x1F1E6, 0x1F1FF), (0x200D, 0x200D), (0xFE0F, 0xFE0F)],
    "whitespace": [(0x9, 0xD), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x2000, 0x200A),
                   (0x2028, 0x2029), (0x3000, 0x3000), (0xFEFF, 0xFEFF), (0x61, 0x62)],
    "newlines": [(0x9, 0xA), (0xD, 0xD), (0x20, 0x20), (0x2F, 0x2F), (0x3B, 0x3B), (0x61, 0x62)],
    "controls": [(0x0, 0x1F), (0x7F, 0x9F), (0x41, 0x42)],
    "punctuation": [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x2010, 0x205E), (0x41, 0x43)],
    "numbers": [(0x30, 0x39), (0xB2, 0xB3), (0x2150, 0x218B), (0x660, 0x669), (0x2C, 0x2E)],
    "cases": [(0x41, 0x5A), (0x61, 0x7A), (0x1C4, 0x1CC), (0x2B0, 0x2B8), (0xAA, 0xAA),
              (0x300, 0x303)],
    "any": [(0x0, 0x2FF), (0x0, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)],
}  # fmt: skip
WORDS = ("def ", "return", "\n", "    ", "\t", "()", "{}", "[i]", " += ", "//", "0x1F", "self.",
         "camelCase", "SHOUT", "\r\n", "\r", "#", " ", "  ", "<|end|>", "3.14", "é", "/* */", ";",
         "XMLHttp", "iPhone", "…", "—", "你好", "мир", "🎉", "1234567", "_", "\x00", "\u3000",
         "don", "'t", "'S", "'ll", "'VE", "'m", "'d", "'re", "'x", "\u2019s", "'\u017f", "\ufffd")  # fmt: skip  # noqa: E501
RUNS = (" ", "\n", "\t", "a", "A", "!", "=", "-", "\r\n", "0", "ab", "Aa", "é", "中", "🎉", "\x00",
        " \n", "\n ", "a ", "//", "\u00a0", "'s", "\u0301", "a\u0301", "Łł")  # fmt: skip
LENGTHS = (1, 2, 3, 4, 7, 8, 16, 31, 64, 65, 130, 1000)
EACH = 170  # of an alphabet, and of words by twice as many
PIECES = 2_500  # of files


@cache
def corpus() -> tuple[str, ...]:
    """Random texts of alphabets and words, runs, and pieces of files here and of Python."""
    rng = random.Random(0)

    def char(ranges: list[tuple[int, int]]) -> str:
        return chr(rng.randint(*rng.choice(ranges)))

    texts = [
        "".join(char(ranges) for _ in range(rng.randint(1, 60)))
        for ranges in ALPHABETS.values()
        for _ in range(EACH)
    ]
    texts += ["".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(2 * EACH)]
    texts += [f"x{run * times}y" for run in RUNS for times in LENGTHS]
    texts += [run * times for run in RUNS for times in LENGTHS]
    files = [_read(path) for path in _files()]
    for _ in range(PIECES):
        text = rng.choice(files)
        start = rng.randrange(len(text))
        texts.append(text[start : start + rng.choice((20, 200, 1000))])
    return tuple(texts)


def _files() -> list[Path]:
    folders = ("mobile/**/*.kt", "mobile/**/*.swift", "runtimes/**/*.py", "runtimes/*/src/*.ts")
    own = [path for pattern in folders for path in ROOT.glob(pattern)]
    own += [
        ROOT / "README.md",
        *(ROOT / "demo").rglob("*.jsonl"),
        *ROOT.glob("tests/vectors/*.json"),
    ]
    library = Path(sysconfig.get_path("stdlib"))
    return [
        *sorted(own),
        *sorted(library.glob("encodings/*.py")),
        *sorted(library.glob("*.py"))[:80],
    ]


def _read(path: Path) -> str:
    """Its first 200 kB; line ends as they are."""
    return path.read_bytes()[:200_000].decode("utf-8", errors="replace") or " "


def letters(count: int) -> str:
    """Random ones, of which BPE makes many tokens, without a space."""
    return "".join(random.Random(count).choices("abcdefghijklmnopqrstuvwxyz", k=count))
