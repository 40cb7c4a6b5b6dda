"""Text to token ids and back, from a package's tokenizer.json. Needs no torch, no transformers."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

import tokenizers


def _byte_alphabet() -> dict[str, int]:
    """The characters byte-level BPE writes bytes as: printable ones are themselves (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


BYTE_ALPHABET = _byte_alphabet()


class Tokenizer:
    """A byte-level BPE tokenizer whose special tokens can be written by id only, never by text."""

    def __init__(self, folder: Path | str) -> None:
        """Load `folder`/tokenizer.json; FileNotFoundError when there is none."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no tokenizer")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        # Only tokens flagged special are kept out of ordinary text, so the others are flagged too.
        self._tokenizer.add_special_tokens([t.content for t in added.values() if not t.special])
        self._tokenizer.encode_special_tokens = True
        self._special: dict[str, int] = {token.content: index for index, token in added.items()}
        self._special_ids = frozenset(self._special.values())

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: `<|start|>` written by a user is nine characters, not a token."""
        # JSON can smuggle in half a surrogate pair, which is no character.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`: special tokens give none, bytes that are no UTF-8 give U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def show(self, ids: Iterable[int]) -> str:
        """`decode` with special tokens by name, for people to read."""
        names = {place: name for name, place in self._special.items()}
        pieces = [names[i].encode() if i in names else self.token_bytes(i) for i in ids]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def special(self, name: str) -> int:
        """Id of the special token `name`; ValueError when the tokenizer has none."""
        if name not in self._special:
            raise ValueError(f"the tokenizer has no special token {name}")
        return self._special[name]

    def has_special(self, name: str) -> bool:
        return name in self._special

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token; none for special tokens and for ids beyond the vocabulary."""
        if token < 0 or token in self._special_ids:
            return b""
        # Models pad their vocabulary, so an id may lie beyond the tokenizer's.
        piece = self._tokenizer.id_to_token(token) or ""
        return b"".join(
            bytes([BYTE_ALPHABET[char]]) if char in BYTE_ALPHABET else char.encode()
            for char in piece
        )


class IncrementalDecoder:
    """Turns tokens into text as they come, holding back the bytes of unfinished characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The codec gives an invalid byte up at once: only a possible prefix is ever held back.
        self._codec = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The whole characters that `token` completes."""
        return self._codec.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left: U+FFFD for an unfinished character. The decoder can be used again."""
        return self._codec.decode(b"", final=True)
