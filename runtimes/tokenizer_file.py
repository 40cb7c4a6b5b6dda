"""What a tokenizer.json holds, checked: each UserError is one line that names the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_onnx.runtimes.bpe import Merges, cut_merges
from gptoss_onnx.runtimes.errors import UserError

LARGE = 1 << 22  # bytes: smaller files the library reads at once
MOST = 1 << 24  # more ids than any vocabulary has
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class AddedToken:
    """A token beside the vocabulary; a special one is written by id only, never by text."""

    id: int
    content: str
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json: all of it but its merges, which are apart where the file is large."""

    content: dict[str, Any]
    ids: dict[str, int]  # of model.vocab
    added: tuple[AddedToken, ...]
    merges: Merges | None

    @classmethod
    def read(cls, path: Path, vocab_size: int | None = None) -> TokenizerFile:
        """FileNotFoundError when there is none; UserError for one that is damaged."""
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(f"{path}: no tokenizer") from error
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        cut = cut_merges(data) if len(data) > LARGE else None
        try:
            content, merges = cut or (json.loads(data), None)
            ids, added = _vocabulary(content), _added_tokens(content)
            _check_ids(ids, added, vocab_size)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read as a tokenizer ({error})") from error
        return cls(content, ids, added, merges)


def _vocabulary(content: Any) -> dict[str, int]:
    model = content.get("model") if isinstance(content, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocab, dict):
        raise ValueError("model.vocab is missing: no BPE")
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("merges"), list):
        raise ValueError("model is no BPE with merges")
    if set(map(type, vocab.values())) - {int}:
        raise ValueError("model.vocab has an id that is no whole number")
    return vocab


def _added_tokens(content: dict[str, Any]) -> tuple[AddedToken, ...]:
    given = content.get("added_tokens")
    entries = [] if given is None else given
    if not isinstance(entries, list):
        raise ValueError("added_tokens is no list")
    found = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"added_tokens[{number}] is no token")
        token, text = entry.get("id"), entry.get("content")
        flags: dict[str, Any] = {flag: entry.get(flag) for flag in FLAGS}
        if type(token) is not int or not isinstance(text, str) or not text:
            raise ValueError(f"added_tokens[{number}] has no id or no content")
        if set(map(type, flags.values())) != {bool}:
            raise ValueError(f"added_tokens[{number}]: its flags must be true or false")
        found.append(AddedToken(token, text, **flags))
    return tuple(found)


def _check_ids(ids: dict[str, int], added: tuple[AddedToken, ...], vocab_size: int | None) -> None:
    """Every id from 0 to the highest one is one token's."""
    contents = {token.content: token.id for token in added}
    used = set(ids.values())
    if len(contents) < len(added):
        raise ValueError("added_tokens has a token twice")
    # A token may be in the vocabulary too, under the same id.
    others = [i for text, i in contents.items() if ids.get(text) != i]
    if any(text in ids and ids[text] != i for text, i in contents.items()):
        raise ValueError("added_tokens has a token of model.vocab under another id")
    if len(used) < len(ids) or len(set(others)) < len(others) or used & set(others):
        raise ValueError("two tokens have one id")
    used.update(others)
    size = max(used, default=-1) + 1
    if min(used, default=0) < 0 or size > MOST:
        raise ValueError(f"an id is below 0 or above {MOST}")
    if size > len(used):
        missing = next(i for i in range(size) if i not in used)
        raise ValueError(f"no token has the id {missing}, and others have higher ones")
    if vocab_size is not None and size > vocab_size:
        raise ValueError(f"a token has the id {size - 1}: the model has {vocab_size} ids")
