"""Lists of terms and patterns: what they find, in whatever form and pieces it comes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import regex

from gptoss_onnx.assistant.folded_text import FoldedText, fold
from gptoss_onnx.assistant.term_filter import TermFilter
from gptoss_onnx.runtimes.errors import UserError
from tests.assistant.reviewing import fed, pieces_of, reviewed

TERMS = TermFilter(["pipe bomb", "C++", "炸弹", "法轮", "naïve"])


@pytest.mark.parametrize("cut", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a pipe bomb", "a "),
        ("Pipe  Bomb!", ""),  # case and space
        ("a pipe\n\tbomb.", "a "),
        ("a ｐｉｐｅ　ｂｏｍｂ", "a "),  # width
        ("a pi\u200bpe bo\u00admb", "a "),  # what cannot be seen
        ("a p\u0336ipe bomb", "a "),  # struck through
        ("not (pipe bomb)", "not ("),
        ("I like c++.", "I like "),
        ("naïve", ""),
        ("nai\u0308ve", ""),  # in two characters
        ("炸弹", ""),
        ("我的炸弹在此", "我的"),
        ("炸 弹", ""),  # space says nothing between them
        ("炸\n\n弹", ""),
        ("说\\u6cd5\\u8f6e", "说"),  # as JSON writes it
        ("說法轮功", "說"),
        ("炸了炸了炸弹", "炸了炸了"),
        ("pipe pipe bomb", "pipe "),
    ],
)
def test_a_term_is_found(text: str, shown: str, cut: int) -> None:
    said, rule = reviewed(TERMS, text, cut=cut)
    assert rule is not None
    assert shown.startswith(said), "nothing of it is shown"
    if cut == 1:
        assert said == shown, "nothing that cannot become one is held"


@pytest.mark.parametrize("cut", [1, 100])
@pytest.mark.parametrize(
    "text",
    [
        "a pipe bombast",
        "stovepipe bomb",
        "pipe-bomb",
        "pipe, bomb",
        "c+",
        "炸了弹",
        "弹炸",
        "法",
        "",
    ],
)
def test_what_is_no_term_passes(text: str, cut: int) -> None:
    assert reviewed(TERMS, text, cut=cut) == (text, None)


def test_a_word_is_held_until_it_cannot_be_one() -> None:
    reviewer = TERMS.begin("final")
    assert [reviewer.feed(text).cleared for text in ("see ", "a pipe", " bo", "at", " 炸")] == [
        4, 6, 6, 14, 16,
    ]  # fmt: skip
    assert reviewer.finish().cleared == 17
    assert reviewer.feed("\n\n弹。").blocked is not None, "over two messages"


def test_arguments_are_read_as_json() -> None:
    said = '{"a": "x\\nbomb", "b": "bo\\"mb"}'
    terms = TermFilter(["bomb"])
    assert reviewed(terms, said, "call") == ('{"a": "x\\n', "bomb")
    assert reviewed(TermFilter(['bo"mb']), said, "call")[1] is not None
    assert reviewed(TermFilter(['bo"mb']), said)[1] is None
    assert reviewed(terms, "a\\nbomb")[1] is not None, "code that prints it"


@pytest.mark.parametrize("cut", [1, 2, 100])
@pytest.mark.parametrize(
    ("pattern", "text", "shown"),
    [
        (r"card \d{4}", "My CARD 1234.", "My "),
        (r"card \d{4}", "My card\n１２３４.", "My "),
        (r"\bass\b", "class, ass", "class, "),
        (r"foo \bbar", "a foo bar", "a "),
        (r"foo\B", "a food", "a "),
        (r"foo(?!d)", "food foot", ""),  # what follows can undo it: held to the end
        (r"(a|b)\1x", "ababbx", ""),
        (r"(?:bomb){e<=1}", "a bonb", ""),
        (r"b\Kom", "a bom", ""),
        (r"[炸引][弹爆]", "不要引爆", "不要"),
        (r"end$", "at the end", "at the "),
    ],
)
def test_a_pattern_is_found(pattern: str, text: str, shown: str, cut: int) -> None:
    said, rule = reviewed(TermFilter(patterns=[pattern]), text, cut=cut)
    assert rule == f"/{pattern}/"
    assert shown.startswith(said)
    if cut == 1:
        assert said == shown


def test_a_pattern_is_found_before_the_text_ends() -> None:
    reviewer = TermFilter(patterns=[r"card \d{4}"]).begin("final")
    assert [reviewer.feed(text).blocked for text in ("A card 1", "234", " ")] == [
        None, None, r"/card \d{4}/",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(r"card \d{4}", "card 123"), (r"\bass\b", "assess"), (r"end$", "ending"), (r"^a", "b a")],
)
def test_what_matches_no_pattern_passes(pattern: str, text: str) -> None:
    assert reviewed(TermFilter(patterns=[pattern]), text) == (text, None)


def test_random_patterns_are_found_as_in_the_whole_text() -> None:
    draw = Random(12)
    units = ["a", "b", "A", " ", ".", r"\b", r"\B", r"\w", "[ab]", "[^a]", "*", "+", "?", "{1,2}"]
    units += ["|", "(", "(?:", ")", r"\s", r"\.", "$", "^", "(?=", "(?<!", "(?f)", r"\1", "{e<2}"]
    found = 0
    for _ in range(6000):
        pattern = "".join(draw.choice(units) for _ in range(draw.randint(1, 8)))
        text = "".join(draw.choice("aab b. ") for _ in range(draw.randint(1, 10)))
        try:
            rules = TermFilter(patterns=[pattern])
        except UserError:
            continue
        match = regex.search(pattern, fold(text), regex.IGNORECASE)
        said, rule = fed(rules.begin("final"), pieces_of(text, draw))
        assert (rule is None) == (match is None), (pattern, text)
        if match is not None:
            found += 1
            assert len(fold(f"{said}|")) - 1 <= match.start(), (pattern, text, said)
    assert found > 400


def test_what_cannot_be_seen_parts_no_character() -> None:
    assert fold("か\u200b\u3099") == fold("が") == "が" != fold("か")


def test_text_in_pieces_folds_as_the_whole() -> None:
    draw = Random(12)
    units = [*"abB  \n法轮功がカﾞ́e\\", "\u200b", "ß", "ﬁ", "\\u6cd5", "\\n", '\\"', "u0041", "İ"]
    units += ["\u1100", "\u1161", "\u11a8", "가", "Ａ", "각", "\u0301", "😀", "\\ud83d", "\\ude00"]
    for number in range(6000):
        text = "".join(draw.choice(units) for _ in range(draw.randint(0, 12)))
        whole, parts = FoldedText(json=number % 2 == 0), FoldedText(json=number % 2 == 0)
        whole.feed(text)
        whole.finish()
        for piece in pieces_of(text, draw):
            before = parts.text
            parts.feed(piece)
            assert parts.text.startswith(before), "what is settled stays so"
        parts.finish()
        assert parts.text == whole.text, text
        places = [parts.place(index) for index in range(len(parts.text) + 1)]
        assert places == sorted(places) and places[-1] == len(text)


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(a|aa)+(?!a)$x"])
def test_a_pattern_that_takes_for_ever_forbids(pattern: str) -> None:
    said, rule = reviewed(TermFilter(patterns=[pattern]), "a" * 300 + "b", cut=400)
    assert said == "" and rule is not None and rule.startswith(f"/{pattern}/ (forbidden")


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "terms.txt"
    path.write_bytes("\ufeff# Ours\r\n\r\n  Pipe bomb \r\n炸弹\r\n/card \\d{4}/\r\n".encode())
    rules = TermFilter.read(path)
    assert rules.slow and not TERMS.slow
    assert reviewed(rules, "a pipe bomb")[1] == f"{path}, line 3: Pipe bomb"
    assert reviewed(rules, "炸弹")[1] == f"{path}, line 4: 炸弹"
    assert reviewed(rules, "card 1234")[1] == f"{path}, line 5: /card \\d{{4}}/"
    assert reviewed(rules, "# Ours")[1] is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the list is empty"),
        (b"# nothing\n\n", "the list is empty"),
        (b"fine\n\xe7\x82\n", "line 2: save the file as UTF-8"),
        (b"fine\n/open\n", "line 2: an expression stands between slashes"),
        (b"/\n", "line 1: an expression stands between slashes"),
        (b"//\n", "line 1: an expression stands between slashes"),
        (b"/(/\n", "no regular expression"),
        (b"/a*/\n", "it matches an empty text"),
        (b"/a{999999999999}b/\n", "no regular expression"),
        (b"\xe2\x80\x8b\n", "a term needs a character that can be seen"),
        (b"x" * 2000, "a term has at most 1000 characters"),
    ],
)
def test_a_bad_file_is_told_in_a_line(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "terms.txt"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        TermFilter.read(path)
    told = str(error.value)
    assert why in told and told.startswith(str(path)) and "\n" not in told


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        TermFilter.read(tmp_path / "none.txt")
    with pytest.raises(UserError, match="directory"):
        TermFilter.read(tmp_path)
