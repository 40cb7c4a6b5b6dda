"""The filter that is a list: terms and regular expressions that no text may hold.

The list is a text file in UTF-8, one rule a line:

    # Lines that begin with # and empty lines say nothing.
    pipe bomb
    炸弹
    /credit card number is \\d{4}/

A term is found as whole words where its script has space between words, anywhere in others (as
Chinese). A line between slashes is an expression of the `regex` library. Both are compared with
text as `folded_text` has it: expressions need not care for case, width and line ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import regex

from gptoss_onnx.assistant.folded_text import FoldedText, fold, in_a_word
from gptoss_onnx.runtimes.content_filter import Kind, Review
from gptoss_onnx.runtimes.errors import UserError

_LONGEST = 1000  # characters of a term: each of its beginnings is kept
_TIMEOUT = 1.0  # seconds of computing for one expression on one piece: longer is forbidden
# What an expression may hold that is searched for while a text grows: no look-ahead, no flags.
_UNIT = regex.compile(
    r"""\\(?:[bBdDwWsS]|[pP]\{[\w ]+\}|u\p{AHex}{4}|[^\p{L}\p{N}_])
    |\[\^?\]?(?:\\.|[^\[\]\\])*\]|\((?:\?:|(?![?*]))|\{\d*(?:,\d*)?\}|[^\\\[\]({}]""",
    regex.VERBOSE,
)
_PLAIN = regex.compile(rf"(?:{_UNIT.pattern})+", regex.VERBOSE)
# `regex` takes the end of a text for the end of a word, and finds nothing partial there.
_BOUNDARIES = {
    r"\b": r"(?:(?<=\w)(?!\w)|(?<!\w)(?=\w))",
    r"\B": r"(?:(?<=\w)(?=\w)|(?<!\w)(?!\w))",
}


class TermFilter:
    """Forbids each of `terms` and `patterns`; a mapping gives each the name by which it is told.

    UserError for an expression that is none or matches an empty text, and for an empty term.
    """

    def __init__(
        self,
        terms: Iterable[str] | Mapping[str, str] = (),
        patterns: Iterable[str] | Mapping[str, str] = (),
    ) -> None:
        self.terms = {_folded(term, name): name for term, name in _named(terms, "{}")}
        # Every beginning of a term: a text is followed from a place for as long as it is one.
        self.beginnings = {term[:size] for term in self.terms for size in range(1, len(term) + 1)}
        self.patterns = [_Pattern(text, name) for text, name in _named(patterns, "/{}/")]

    @classmethod
    def read(cls, path: Path | str) -> TermFilter:
        """The list in a file; UserError, which names the line, for one that is damaged."""
        path = Path(path)
        terms: dict[str, str] = {}
        patterns: dict[str, str] = {}
        for number, line in enumerate(_lines(path), 1):
            line, place = line.strip(), f"{path}, line {number}"
            if line.startswith("/"):
                if len(line) < 3 or not line.endswith("/"):
                    raise UserError(
                        f"{place}: an expression stands between slashes: /{{like this}}/"
                    )
                patterns.setdefault(line[1:-1], f"{place}: {line}")
            elif line and not line.startswith("#"):
                terms.setdefault(line, f"{place}: {line}")
        if not terms and not patterns:
            raise UserError(f"{path}: the list is empty: write a term or /expression/ in each line")
        return cls(terms, patterns)

    @property
    def slow(self) -> bool:
        return bool(self.patterns)

    def begin(self, kind: Kind) -> TermReviewer:
        return TermReviewer(self, kind)


class TermReviewer:
    """Searches a text that grows, once: no place that is decided is looked at again."""

    def __init__(self, rules: TermFilter, kind: Kind) -> None:
        self._rules = rules
        self._folded = FoldedText(json=kind == "call")
        self._open = 0  # the first place where a term may yet begin
        self._open_in = [0] * len(rules.patterns)  # the same for each expression
        self._blocked: str | None = None

    def feed(self, text: str) -> Review:
        if self._blocked is None:
            self._folded.feed(text)
            self._blocked = self._search()
        if self._blocked is not None:
            return Review(blocked=self._blocked)
        first = min((self._open, *self._open_in))
        return Review(self._folded.place(first))

    def finish(self) -> Review:
        if self._blocked is None:
            self._folded.finish()
            self._blocked = self._search() or self._search_end()
        return Review(self._folded.size, self._blocked)

    def _search(self) -> str | None:
        """The rule that is broken for certain; what may yet break one is left open."""
        text, rules = self._folded.text, self._rules
        found, self._open = _find_term(rules, text, self._open, complete=False)
        if found is not None:
            return found
        for place, pattern in enumerate(rules.patterns):
            if pattern.growing is None:  # all is held until it ends
                continue
            try:
                start = _open_from(pattern.growing, text, self._open_in[place])
            except TimeoutError:
                return _too_long(pattern.name)
            if start is None:
                return pattern.name
            self._open_in[place] = start
        return None

    def _search_end(self) -> str | None:
        """The rule that is broken if the text ends here."""
        text, rules = self._folded.text, self._rules
        found, _ = _find_term(rules, text, self._open, complete=True)
        if found is not None:
            return found
        for start, pattern in zip(self._open_in, rules.patterns, strict=True):
            try:
                if pattern.whole.search(text, start, timeout=_TIMEOUT):
                    return pattern.name
            except TimeoutError:
                return _too_long(pattern.name)
        return None


def _find_term(rules: TermFilter, text: str, start: int, complete: bool) -> tuple[str | None, int]:
    """The rule of a term in `text`, and the first place where one may begin that is not over."""
    first_open = len(text)
    for place in range(start, len(text)):
        if (
            place
            and in_a_word(text[place - 1], text[place])
            and text[place - 2 : place - 1] != "\\"
        ):
            continue  # behind a backslash stands a letter of JSON's, as in \nbomb
        end = place + 1
        while end <= len(text) and (said := text[place:end]) in rules.beginnings:
            whole = complete if end == len(text) else not in_a_word(text[end - 1], text[end])
            if whole and said in rules.terms:
                return rules.terms[said], place
            end += 1
        if end > len(text):
            first_open = min(first_open, place)
    return None, first_open


def _open_from(pattern: regex.Pattern[str], text: str, start: int) -> int | None:
    """Where a match may begin that what follows decides on; None where there is one already."""
    found = pattern.search(text, start, partial=True, timeout=_TIMEOUT)
    if found is None:
        return len(text)
    first: int = found.start()
    return first if found.partial else None


def _too_long(name: str) -> str:
    return f"{name} (forbidden, as it could not be searched for in {_TIMEOUT:g} s)"


def _named(rules: Iterable[str] | Mapping[str, str], form: str) -> Iterable[tuple[str, str]]:
    return rules.items() if isinstance(rules, Mapping) else [(r, form.format(r)) for r in rules]


def _folded(term: str, name: str) -> str:
    folded = fold(term).strip()
    if not folded:
        raise UserError(f"{name}: a term needs a character that can be seen")
    if len(folded) > _LONGEST:
        shown = f"{name.removesuffix(term)}{term[:40]}..."
        raise UserError(f"{shown}: a term has at most {_LONGEST} characters")
    return folded


class _Pattern:
    """`whole` is for a complete text. `growing`, where there is one, for what may yet grow: any
    match is there for good, and a partial one begins where one may be that is not there yet."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        try:
            self.whole = regex.compile(text, regex.IGNORECASE)
            empty = self.whole.search("", timeout=_TIMEOUT)
            self.growing = _growing(text)
        except (regex.error, TimeoutError, OverflowError, RecursionError, ValueError) as error:
            raise UserError(f"{name}: no regular expression: {error}") from error
        if empty:
            raise UserError(f"{name}: it matches an empty text, so every text would be forbidden")


def _growing(text: str) -> regex.Pattern[str] | None:
    """None where `regex` does not tell every partial match, or what follows can undo a match."""
    if not _PLAIN.fullmatch(text):
        return None
    units = (unit[0] for unit in _UNIT.finditer(text))
    grown = "".join(_BOUNDARIES.get(unit, unit) for unit in units)
    return regex.compile(f"(?:{grown})(?=.)", regex.IGNORECASE | regex.DOTALL)


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: save the file as UTF-8") from error
