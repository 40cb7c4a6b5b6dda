"""Cases of tokenizer_files.json: demo/tokenizer.json with one text in place of another."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptoss_onnx.runtimes.tokenizer import IncrementalDecoder, Tokenizer

DEMO = Path(__file__).parents[2] / "demo"
Json = dict[str, Any]

FORM = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
ADDED: list[Json] = [
    {"content": "<tool_x>"},
    {"content": "<tool_xy>"},
    {"content": "<left>", "lstrip": True},
    {"content": "<right>", "rstrip": True},
    {"content": "xqw", "single_word": True},
    {"content": "<norm>", "normalized": True},
    {"content": "中é", "lstrip": True, "rstrip": True, "single_word": True},
    {"content": "<|hidden|>", "special": True},
    {"content": "(a+b)*[c]?", "normalized": True, "rstrip": True},
    {"content": "hidden|><"},
    {"content": "<norm>al", "normalized": True},
]
ADDED_TEXTS = [
    "<tool_x>", "a<tool_x>b", "<tool_xy><tool_x>y", "<tool_<tool_x>>", "tool_x> <tool_x",
    "a \n\u3000<left> b", "<left><left>", "  <left>", "a <right> \t\x85b", "<right>  <left>x",
    "<right>\u2028", "\ufeff<left>\ufeff<right>\ufeff",
    "xqw", "a xqw, words sxqw xqw_ xqw1 xqw! \u00b2xqw\u00bd xqw\u200d \u24b6xqw \u0301xqw",
    "<tool_x>xqw<tool_x>", "xqw<norm>xqw", "<norm>xqw", "\u2177xqw 中xqw xqw\U0001f150",
    "<norm> <tool_x><norm>", "<norm>al<norm>a", "x 中é y", "x中éy", "  中é  中é  ",
    "<|hidden|>", "a<|hidden|><tool_x>", "<|start|>assistant<|hidden|><right> <|end|>",
    "(a+b)*[c]?  x", "aab)*[c]", "<|hidden|><", "hidden|><", "\U0001f600<tool_x>\x00<tool_x>",
]  # fmt: skip


def tokenizer_files() -> Json:
    """Files that are demo/tokenizer.json with one text in place of another."""
    entries = [{"id": 4096 + i, **FORM, "special": False, **given} for i, given in enumerate(ADDED)]
    behind = '\n  ],\n  "normalizer": null'
    more = "".join(f",\n    {json.dumps(entry)}" for entry in entries)
    changes = [
        {"name": "added tokens", "find": behind, "replace": more + behind},
        {"name": "added tokens, the highest id first", "find": '"added_tokens": [',
         "replace": '"added_tokens": [' + ", ".join(map(json.dumps, entries[::-1])) + ","},
    ]  # fmt: skip
    read = []
    for change in changes:
        tokenizer = _changed(change)
        streams = [tokenizer.encode(text) for text in ADDED_TEXTS]
        streams.append([*range(4085, 4110), -1, 4096, 4096, 127, 4102, 64])
        read.append({
            **change,
            "encode": [{"text": t, "ids": tokenizer.encode(t)} for t in ADDED_TEXTS],
            "decode": [
                {"ids": ids, "text": tokenizer.decode(ids), "pieces": pieces(tokenizer, ids)}
                for ids in streams
            ],
        })  # fmt: skip
    for name, find, replacement in SAME:
        change = {"name": name, "find": find, "replace": replacement}
        tokenizer = _changed(change)
        encoded = [{"text": t, "ids": tokenizer.encode(t)} for t in SAME_TEXTS]
        read.append({**change, "encode": encoded, "decode": []})
    return {
        "tokenizer": "demo/tokenizer.json",
        "vocab_size": VOCAB_SIZE,
        "read": read,
        "damaged": [{"name": n, "find": find, "replace": other} for n, find, other in DAMAGED],
    }


VOCAB_SIZE = 4096 + len(ADDED)
SAME_TEXTS = ("hello the world", "a # b$", "你好 #", "")
# Written otherwise, the same to read.
SAME = [
    ("an escaped character", '"\u0120the":', '"\\u0120\\u0074he":'),
    ("no white space", '      "#": 2,\n      "$": 3,', '"#":2,"$":3,'),
    ("a token of the vocabulary is added too", '\n  ],\n  "normalizer"',
     f',\n{json.dumps({"id": 2, "content": "#", **FORM, "special": False})}\n  ],\n  "normalizer"'),
]  # fmt: skip
TOP, MODEL = '"version": "1.0",', '"type": "BPE",'
DAMAGED = [
    ("ends too soon", '"normalizer": null,', '"normalizer": null, "'),
    ("no JSON", '"normalizer": null,', '"normalizer": nul,'),
    ("no object", TOP, '"version": "1.0" }, {'),
    ("more behind it", '"added_tokens": [', '"added_tokens": [}'),
    ("no model", '"model": {', '"models": {'),
    ("the model is null", '"model": {', '"model": null, "x": {'),
    ("the model is a list", '"model": {', '"model": [], "x": {'),
    ("no vocabulary", '"vocab": {', '"vocabulary": {'),
    ("the vocabulary is a list", '"vocab": {', '"vocab": [], "x": {'),
    ("no merges", '"merges": [', '"merge": ['),
    ("merges are an object", '"merges": [', '"merges": {}, "x": ['),
    ("a merge is a number", '"merges": [', '"merges": [7,'),
    ("a merge is null", '"merges": [', '"merges": [null,'),
    ("a merge of three", '"merges": [', '"merges": [["a", "b", "c"],'),
    ("a merge of one", '"merges": [', '"merges": [["a"],'),
    ("a merge of numbers", '"merges": [', '"merges": [[1, 2],'),
    ("a merge of no tokens", '"merges": [', '"merges": [["zz", "qqq"],'),
    ("a merge to no token", '"merges": [', '"merges": [["!", "q"],'),
    ("a merge of a blank", '"merges": [', '"merges": ["ab",'),
    ("an id twice", '"#": 2,', '"#": 3,'),
    ("an id of two tokens", '"#": 2,', '"#": 2, "zzqzz": 2,'),
    ("a hole", '"id": 4088,', '"id": 4110,'),
    ("a hole below the last id", '"id": 4095,', '"id": 4100,'),
    ("a hole in the vocabulary", '"#": 2,', ""),
    ("an id below 0", '"#": 2,', '"#": -2,'),
    ("an id that is no whole number", '"#": 2,', '"#": 2.5,'),
    ("an id that is a text", '"#": 2,', '"#": "2",'),
    ("an id that is null", '"#": 2,', '"#": null,'),
    ("an id that is true", '"!": 0,\n      "\\"": 1,', '"!": 0, "\\"": true,'),
    ("a huge id", '"#": 2,', '"#": 99999999999999999999,'),
    ("an id beyond the model's", '\n  ],\n  "normalizer"',
     "".join(f',\n{json.dumps({"id": 4096 + i, "content": f"<{i}>", **FORM, "special": True})}'
             for i in range(len(ADDED) + 1)) + '\n  ],\n  "normalizer"'),
    ("added tokens are an object", '"added_tokens": [', '"added_tokens": {}, "x": ['),
    ("an added token is a number", '"added_tokens": [', '"added_tokens": [7,'),
    ("an added token is null", '"added_tokens": [', '"added_tokens": [null,'),
    ("an added token is a list", '"added_tokens": [', '"added_tokens": [[],'),
    ("an added token without content", '"content": "<|start|>",', ""),
    ("an added token of a number", '"content": "<|start|>",', '"content": 5,'),
    ("an added token of nothing", '"content": "<|start|>",', '"content": "",'),
    ("an added token without id", '"id": 4090,', ""),
    ("an added token's id is a text", '"id": 4090,', '"id": "4090",'),
    ("an added token's id is a float", '"id": 4090,', '"id": 4090.5,'),
    ("an added token's id is another's", '"id": 4090,', '"id": 4091,'),
    ("an added token's id is the vocabulary's", '"id": 4095,', '"id": 5,'),
    ("an added token twice", '"content": "<|start|>",', '"content": "<|end|>",'),
    ("an added token of the vocabulary", '"content": "<|call|>",', '"content": "#",'),
    ("a flag is a text", '"lstrip": false,', '"lstrip": "no",'),
    ("no flag", '"lstrip": false,', ""),
    ("a flag is a number", '"lstrip": false,', '"lstrip": 1,'),
    ("another model", MODEL, '"type": "Unigram",'),
    ("the model's type is a number", MODEL, '"type": 7,'),
    ("the pre-tokenizer is a number", '"pre_tokenizer": {', '"pre_tokenizer": 7, "x": {'),
    ("its steps are an object", '"pretokenizers": [', '"pretokenizers": {}, "x": ['),
    ("a step is null", '"pretokenizers": [', '"pretokenizers": [null,'),
    ("a pattern that is none", '"Regex": "', '"Regex": "('),
    ("a pattern that is a number", '"Regex": "', '"Regex": 7, "x": "'),
]  # fmt: skip


def _changed(change: Json) -> Tokenizer:
    text = (DEMO / "tokenizer.json").read_text(encoding="utf-8")
    assert change["find"] in text, change["name"]
    with tempfile.TemporaryDirectory() as folder:
        text = text.replace(change["find"], change["replace"], 1)
        (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
        return Tokenizer(folder, VOCAB_SIZE)


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each id completes, and what is left at the end."""
    decoder = IncrementalDecoder(tokenizer)
    return [*map(decoder.feed, ids), decoder.finish()]
