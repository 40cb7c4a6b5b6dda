"""Text as filters compare it: what looks or means the same is the same, wherever it was cut.

Unicode's NFKC and case folding. What cannot be seen is left out: zero-width and control characters,
accents that no letter takes. White space is one space, and none between Chinese or Japanese
characters. Characters written as JSON escapes (`\\u6cd5`) are those characters.
"""

from __future__ import annotations

import unicodedata
from array import array
from functools import cache, lru_cache

import regex

_SHORT = 8  # characters: a cluster that long is not worth remembering
_PAIR = r"\\u[dD][89abAB]\p{AHex}{2}\\u[dD][c-fC-F]\p{AHex}{2}"
_ESCAPES = (_PAIR, r"\\u\p{AHex}{4}")
_IN_JSON = (*_ESCAPES, r"\\[\"\\/bfnrt]")
_UNESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# What joins the character before it: marks, what is invisible, the later parts of a syllable.
_JOINS = regex.compile(r"[\p{M}\p{DI}\u1160-\u11ff\ud7b0-\ud7ff\uff9e\uff9f\uffa0-\uffdc]")
_UNSEEN = regex.compile(r"(?V1)[\p{DI}[\p{Cc}--\s]]")
# Kana's voicing marks change what is read.
_ACCENTS = regex.compile(r"(?V1)[[\p{M}&&\p{Script=Inherited}]--[\u3099\u309a]]")
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}"
_CJK = regex.compile(rf"[{_UNSPACED}]")
# Letters of scripts that put space between words.
_SPACED = regex.compile(
    rf"(?V1)[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}]]"
)


def fold(text: str) -> str:
    """A whole text as `FoldedText` has it."""
    folded = FoldedText()
    folded.feed(text)
    folded.finish()
    return folded.text


@lru_cache(1 << 14)
def in_a_word(before: str, char: str) -> bool:
    """Whether two neighbours belong to one word, in scripts that have space between words."""
    return bool(_SPACED.match(before) and _SPACED.match(char))


class FoldedText:
    """A text that grows: `text` is what of it is settled, in folded form."""

    def __init__(self, json: bool = False) -> None:
        """`json`: read every escape of JSON's strings, not those of a character alone."""
        self.text = ""
        self.size = 0  # characters fed
        self._places = array("q")  # of each folded character, where in what was fed it begins
        self._raw = ""  # the end of what was fed: what follows may change it
        self._last = ""  # folded character
        self._gap: int | None = None  # white space behind a CJK character, as yet no space
        alternatives = _IN_JSON if json else _ESCAPES
        self._unit = regex.compile("|".join((*alternatives, ".")), regex.DOTALL)
        self._escapes = [regex.compile(escape) for escape in alternatives]

    def feed(self, text: str) -> None:
        self._raw += text
        self.size += len(text)
        self._settle(complete=False)

    def finish(self) -> None:
        """Settle the rest; more may follow."""
        self._settle(complete=True)

    def place(self, index: int) -> int:
        """Where in what was fed the folded character begins, or what is not settled."""
        return self._places[index] if index < len(self.text) else self.size - len(self._raw)

    def _settle(self, complete: bool) -> None:
        start = self.size - len(self._raw)
        cluster, begun, ended = "", 0, 0  # characters that may join, and their place in _raw
        added: list[str] = []
        for unit in self._unit.finditer(self._raw):
            if not complete and self._unfinished(unit.start()):
                break
            char = _unescape(unit[0])
            if cluster and not _JOINS.match(char):
                added += self._add(cluster, start + begun)
                cluster, begun = "", unit.start()
            cluster += char
            ended = unit.end()
        if cluster and (complete or (len(cluster) == 1 and not _takes_marks(cluster))):
            added += self._add(cluster, start + begun)
            begun = ended
        self._raw = self._raw[begun:]
        self.text += "".join(added)

    def _unfinished(self, place: int) -> bool:
        """Whether what follows what was fed may make an escape of what begins at `place`."""
        if self._raw[place] != "\\":
            return False
        found = (escape.match(self._raw, place, partial=True) for escape in self._escapes)
        return any(match is not None and match.partial for match in found)

    def _add(self, cluster: str, place: int) -> list[str]:
        added: list[str] = []
        for char in _fold(cluster) if len(cluster) < _SHORT else _fold.__wrapped__(cluster):
            last = added[-1] if added else self._last
            if char.isspace():
                if self._gap is None and _CJK.match(last):
                    self._gap = place
                elif self._gap is None and last != " ":
                    added.append(" ")
                    self._places.append(place)
                continue
            if self._gap is not None and not _CJK.match(char):
                added.append(" ")
                self._places.append(self._gap)
            self._gap = None
            added.append(char)
            self._places.append(place)
        if added:
            self._last = added[-1]
        return added


def _unescape(unit: str) -> str:
    if len(unit) == 1:
        return unit
    if unit[1] != "u" or len(unit) == 2:
        return _UNESCAPED.get(unit[1], unit[1])
    codes = b"".join(int(code, 16).to_bytes(2, "big") for code in unit.split("\\u")[1:])
    return codes.decode("utf-16-be", "replace")


@lru_cache(1 << 14)
def _fold(cluster: str) -> str:
    seen: str = _UNSEEN.sub("", cluster)
    folded = _compose(_compose(seen).casefold())
    kept: str = _ACCENTS.sub("", _UNSEEN.sub("", folded))
    return kept


def _compose(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


@lru_cache(1 << 14)
def _takes_marks(char: str) -> bool:
    """Whether a mark behind `char` may make another character of it."""
    last = (_compose(char) or " ")[-1]
    syllable = "\u1100" <= last <= "\u1112" or "\uac00" <= last <= "\ud7a3"
    return syllable or last in _bases() or (_fold(char) or " ")[-1] in _bases()


@cache
def _bases() -> frozenset[str]:
    """Every first of two characters that NFC makes one of."""
    pairs = (unicodedata.decomposition(chr(code)).split() for code in range(0x20000))
    return frozenset(
        chr(int(pair[0], 16)) for pair in pairs if len(pair) == 2 and not pair[0].startswith("<")
    )
