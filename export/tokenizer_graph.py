"""The tokenizer as ONNX graphs of onnxruntime-extensions, checked against its own files.

tokenizer.onnx turns text [1] into ids; detokenizer.onnx ids back into text. Text is always
ordinary text: special tokens are left out of the encoder, so look-alikes come out as characters.
"""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tokenizers
from onnx import TensorProto, helper

from gptoss_onnx.export.package_files import read_json
from gptoss_onnx.runtimes.tokenizer import BYTE_ALPHABET

DOMAIN = "ai.onnx.contrib"
# What is written unless a graph is asked for: no runtime here reads one, gpt-oss's take 15.5 MB and
# 3 to 13 s to load, and onnxruntime-extensions 0.15 splits 3 % of texts otherwise. It knows the
# pattern's parts by their spelling; others go to std::regex, which has no \p and overflows
# the stack at 100,000 letters. So no other writing of the pattern is right either.
FILES_ALONE = {"use": "files", "reason": "no tokenizer graph was asked for"}
ENCODER, DECODER = "tokenizer.onnx", "detokenizer.onnx"
PROBES = (
    "What does os.path.join do?",
    "os.path.join 是做什么的？",
    "中文、繁體字、日本語のテキスト、한국어",
    "emoji 🎉 👩‍👩‍👧 🇨🇭 e\u0301 café naïve İ",
    "def f(x):\n\treturn x ** 2;\n// C\n\r\n/* end */",
    "a;\n//b\r\n/c ///\n\n",
    "a;\n//b\r\n/c",
    "x\n\t\n\t\ty",
    "}\n\n//\n/",
    "<|start|>system<|message|>look-alike<|end|><|return|>",
    "  leading, trailing  \n\n \t x",
    "DON'T can't I'LL we've XMLHttpRequest camelCase",
    "0 12 345 6789 1234567890 3.14e-10",
    "\u00a0nbsp\u2003em\u200bzero …—«»",
    "ﬁ ½ ² Ω µ ǅ ß ẞ",
    "",
)
NUL = "nul\x00inside"  # a C string ends at its first NUL, and so does the graph's input


def tokenizer_graph(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Write both graphs where the tokenizer agrees with them; gives the manifest's entry.

    {"use": "graph" | "files", "graph", "detokenizer", "probes": how many strings were compared,
    "differs": those whose ids were not the same}.
    """
    file = checkpoint / "tokenizer.json"
    if not file.is_file():
        return {"use": "files", "reason": "the checkpoint has no tokenizer.json"}
    content = json.loads(file.read_text(encoding="utf-8"))
    config = read_json(checkpoint / "tokenizer_config.json")
    onnx.save(_encoder(content, config), folder / ENCODER)
    onnx.save(_decoder(content), folder / DECODER)
    try:
        differs = _differences(tokenizers.Tokenizer.from_file(str(file)), folder)
    except Exception as error:  # ONNX Runtime's are of no one kind: the ops cannot read it
        for name in (ENCODER, DECODER):
            (folder / name).unlink()
        reason = str(error).splitlines()[0]
        return {"use": "files", "reason": f"onnxruntime-extensions cannot load it: {reason}"}
    return {
        "use": "files" if set(differs) - {NUL} else "graph",
        "graph": ENCODER,
        "detokenizer": DECODER,
        "probes": len(PROBES) + 1,
        "differs": differs,
    }


def session(graph: Path) -> onnxruntime.InferenceSession:
    """A session of a graph that uses onnxruntime-extensions' ops."""
    from onnxruntime_extensions import get_library_path

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _differences(reference: tokenizers.Tokenizer, folder: Path) -> list[str]:
    reference.encode_special_tokens = True
    encode, decode = session(folder / ENCODER), session(folder / DECODER)
    differs = []
    for text in (*PROBES, NUL):
        expected = reference.encode(text, add_special_tokens=False).ids
        (ids,) = encode.run(["ids"], {"text": np.array([text], dtype=object)})
        same = ids.reshape(-1).tolist() == expected
        if same and expected:
            (back,) = decode.run(["text"], {"ids": np.array(expected)})
            # Some tokenizers normalize; decoding is judged against what the files decode to.
            same = back.reshape(-1)[0] == reference.decode(expected, skip_special_tokens=False)
        if not same:
            differs.append(unicodedata.normalize("NFC", text))
    return differs


def _encoder(content: dict[str, Any], config: dict[str, Any]) -> onnx.ModelProto:
    plain = {**content, "added_tokens": []}
    node = helper.make_node(
        "HfJsonTokenizer",
        ["text"],
        ["ids", "mask"],
        domain=DOMAIN,
        tokenizer_vocab=json.dumps(plain, ensure_ascii=False),
        tokenizer_config=json.dumps({**config, "add_bos_token": False}, ensure_ascii=False),
    )
    text = helper.make_tensor_value_info("text", TensorProto.STRING, [1])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "tokens"])
    return _model(node, text, ids)


def _decoder(content: dict[str, Any]) -> onnx.ModelProto:
    added = {entry["id"]: entry["content"] for entry in content.get("added_tokens", [])}
    vocab = {index: token for token, index in content["model"]["vocab"].items()} | added
    tokens = [vocab.get(index, "") for index in range(max(vocab) + 1)]
    node = helper.make_node(
        "BpeDecoder",
        ["ids"],
        ["text"],
        domain=DOMAIN,
        id_vocab="\n".join(tokens),
        byte_decoder="\n".join(f"{ord(char)}\t{byte}" for char, byte in BYTE_ALPHABET.items()),
        added_tokens="\n".join(f"{index}\t{token}" for index, token in added.items()),
        all_special_ids="\n".join(str(index) for index in added),
        skip_special_tokens=0,
    )
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["tokens"])
    text = helper.make_tensor_value_info("text", TensorProto.STRING, [1])
    return _model(node, ids, text)


def _model(
    node: onnx.NodeProto, source: onnx.ValueInfoProto, result: onnx.ValueInfoProto
) -> onnx.ModelProto:
    graph = helper.make_graph([node], node.op_type, [source], [result])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
