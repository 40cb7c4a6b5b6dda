"""Text to token ids and back, from a package's tokenizer.json. Needs no torch, no transformers."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers

from gptoss_onnx.runtimes.bpe import Bpe
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.tokenizer_file import TokenizerFile

LONGEST_WORD = 20_000  # characters: longer ones are worth the library's loading
# Its regular expressions give up after ten million steps at one place: as many capitals in a row.
TOO_MUCH = "its pattern cannot split this text"


def _byte_alphabet() -> dict[str, int]:
    """The characters byte-level BPE writes bytes as: printable ones are themselves (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


BYTE_ALPHABET = _byte_alphabet()


class Tokenizer:
    """A byte-level BPE tokenizer whose special tokens can be written by id only, never by text."""

    def __init__(self, folder: Path | str, vocab_size: int | None = None) -> None:
        """Load `folder`/tokenizer.json, of which a model with `vocab_size` ids knows every one.

        FileNotFoundError when there is none, UserError for one that is damaged.
        """
        self._path = Path(folder) / "tokenizer.json"
        file = TokenizerFile.read(self._path, vocab_size)
        self._in_order = list(file.added) == sorted(file.added, key=lambda token: token.id)
        added = {token.id: token for token in file.added}
        self._special = {token.content: i for i, token in added.items() if token.special}
        self._special_ids = frozenset(self._special.values())
        self._pieces = dict(zip(file.ids.values(), file.ids, strict=True))
        self._added = {i: token.content.encode() for i, token in added.items()}
        self._splitter, self._bpe = None, None
        if file.merges is not None and _is_plain(file):
            self._splitter = self._read_by_library(_without_model(file.content)).pre_tokenizer
            self._bpe = Bpe(file.ids, file.merges)
        else:
            self._library  # noqa: B018  what it cannot read is said now

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        """The tokenizers library's, which does all that a file can ask for."""
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror}") from error
        if not self._in_order:  # it numbers added tokens as they come, whatever their ids
            content = json.loads(data)
            content["added_tokens"].sort(key=lambda entry: entry["id"])
            data = json.dumps(content).encode()
        return self._read_by_library(data)

    def _read_by_library(self, data: bytes) -> tokenizers.Tokenizer:
        with self._told("cannot be read as a tokenizer"):
            library = tokenizers.Tokenizer.from_buffer(data)
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True  # as characters
        return library

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """What the library cannot do is a UserError."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # where its Rust panics it is no Exception
            line = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{self._path}: {what} ({line})") from error

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: `<|start|>` written by a user is nine characters, not a token."""
        # JSON can smuggle in half a surrogate pair, which is no character.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if self._splitter is not None and self._bpe is not None:
            with self._told(TOO_MUCH):
                words = [word for word, _ in self._splitter.pre_tokenize_str(text)]
            if max(map(len, words), default=0) <= LONGEST_WORD:
                return list(chain.from_iterable(map(self._bpe.encode, words)))
        library = self._library
        with self._told(TOO_MUCH):
            return list(library.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`: special tokens give none, bytes that are no UTF-8 give U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def show(self, ids: Iterable[int]) -> str:
        """`decode` with special tokens by name, for people to read."""
        pieces = [self._added.get(i) or self.token_bytes(i) for i in ids]
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
        if token in self._special_ids:
            return b""
        if token in self._added:
            return self._added[token]
        # Models pad their vocabulary, so an id may lie beyond the tokenizer's.
        piece = self._pieces.get(token, "")
        found = [BYTE_ALPHABET.get(char, -1) for char in piece]
        return piece.encode() if -1 in found else bytes(found)


def _is_plain(file: TokenizerFile) -> bool:
    """Whether the file asks for no more than `Bpe` does: a pattern, bytes as characters, merges."""
    content, model = file.content, file.content["model"]
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
               "byte_fallback", "ignore_merges")  # fmt: skip
    given = content.get("pre_tokenizer")
    steps = given.get("pretokenizers") if isinstance(given, dict) else None
    last = steps[-1] if isinstance(steps, list) and steps else None
    return (
        content.get("normalizer") is None
        and all(token.special for token in file.added)
        and not any(model.get(option) for option in options)
        and isinstance(last, dict)
        and last.get("type") == "ByteLevel"
        and file.ids.keys() >= BYTE_ALPHABET.keys()
    )


def _without_model(content: dict[str, Any]) -> bytes:
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    return json.dumps(content | {"model": empty, "added_tokens": []}).encode()


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
