"""A tiny package that keeps the exporter's graph contract; the same model in NumPy as oracle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import openai_harmony
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gptoss_onnx.graph_passes.half_precision import HalfPrecision
from gptoss_onnx.runtimes import generation
from gptoss_onnx.runtimes.package import Package
from tests.conftest import seal
from tests.o200k import o200k
from tests.runtimes.scripted import Script, Spoken, encode

Floats = NDArray[np.float32]
SPECIALS = [
    f"<|{name}|>"
    for name in ("startoftext", "endoftext", "return", "constrain", "channel", "start", "end")
] + ["<|message|>", "<|call|>"]
VOCAB = 272  # 256 bytes, the special tokens, and a few ids beyond them as padded models have
CONTEXT = 2048
HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 16, 32
WINDOW = 8


@dataclass(frozen=True)
class TinyModel:
    """Random weights; layers alternate sliding and full attention, starting with sliding."""

    weights: dict[str, Floats]
    windows: tuple[int | None, ...]

    @classmethod
    def random(cls, layers: int = 3, seed: int = 0) -> TinyModel:
        rng = np.random.default_rng(seed)

        def normal(*shape: int, scale: float = 1.0) -> Floats:
            return (rng.standard_normal(shape) * scale).astype(np.float32)

        width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        angles = np.arange(CONTEXT)[:, None] * 100.0 ** -np.linspace(0, 1, HEAD_DIM // 2)
        weights = {
            "embedding": normal(VOCAB, HIDDEN),
            "head": normal(HIDDEN, VOCAB, scale=0.5),
            "scale": np.ones(HIDDEN, np.float32),
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
        }
        for layer in range(layers):
            weights[f"qkv.{layer}"] = normal(HIDDEN, width, scale=0.4)
            weights[f"out.{layer}"] = normal(HEADS * HEAD_DIM, HIDDEN, scale=0.5)
            weights[f"sinks.{layer}"] = normal(HEADS)
        return cls(weights, tuple(WINDOW if i % 2 == 0 else None for i in range(layers)))

    def logits(self, ids: Sequence[int]) -> Floats:
        """Logits of every position, [S, V], from one pass without a cache."""
        w, count = self.weights, len(ids)
        x = w["embedding"][np.asarray(ids)]  # [S, H]
        ahead = np.arange(count)[:, None] - np.arange(count)[None, :]
        for layer, window in enumerate(self.windows):
            qkv = (_normalize(x) @ w[f"qkv.{layer}"]).reshape(count, -1, HEAD_DIM)
            q, k, v = np.split(qkv, [HEADS, HEADS + KV_HEADS], axis=1)
            q, k = self._rotate(q), self._rotate(k)
            k, v = (np.repeat(t, HEADS // KV_HEADS, axis=1) for t in (k, v))
            q, k, v = (t.transpose(1, 0, 2) for t in (q, k, v))  # [heads, S, D]
            scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(HEAD_DIM))
            hidden = (ahead < 0) | (ahead >= (window or count))
            scores = np.where(hidden, -np.inf, scores)
            sinks = np.broadcast_to(w[f"sinks.{layer}"][:, None, None], (HEADS, count, 1))
            scores = np.concatenate([scores, sinks], axis=-1)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights = (weights / weights.sum(-1, keepdims=True))[..., :-1]
            mixed = (weights @ v).transpose(1, 0, 2).reshape(count, -1)
            x = x + mixed @ w[f"out.{layer}"]
        return np.asarray(_normalize(x) @ w["head"], np.float32)

    def _rotate(self, x: Floats) -> Floats:
        cos, sin = (self.weights[t][: len(x), None] for t in ("cos", "sin"))
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def choices(self, prompt: Sequence[int], reply: Sequence[int]) -> list[int]:
        """The likeliest token at each place of `reply`: equal to it if it is the greedy one."""
        logits = self.logits([*prompt, *reply])[len(prompt) - 1 : -1]
        return [int(token) for token in logits.argmax(-1)]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[len(prompt) :]


def _normalize(x: Floats) -> Floats:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + np.float32(1e-5))


def build_graph(model: TinyModel, *, windowed: bool, logits: str) -> onnx.ModelProto:
    """The model with the inputs, outputs and lengths of an exported CPU graph."""
    nodes: list[onnx.NodeProto] = []
    constants = {"one": np.array([1]), "end": np.array([2**31])}
    if logits == "last":
        constants["zero"] = np.array(0)

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    tokens = node("ReduceSum", ["attention_mask", "one"], "tokens", keepdims=0)
    last = node("Sub", [tokens, "one"], "last")
    node("Cast", [last], "seqlens_k", to=TensorProto.INT32)
    total = node("Shape", ["attention_mask"], "total_shape", start=1, end=2)
    total = node("Squeeze", [total], "total")
    node("Cast", [total], "total_sequence_length", to=TensorProto.INT32)
    size = node("Shape", ["input_ids"], "chunk_size", start=1, end=2)
    start = node("Neg", [size], "chunk_start")
    chunk = node("Slice", ["attention_mask", start, "end", "one"], "chunk_mask")
    valid = node("ReduceSum", [chunk, "one"], "valid", keepdims=0)
    node("Cast", [valid], "query_seqlens", to=TensorProto.INT32)
    x = node("Gather", ["embedding", "input_ids"], "x.0")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", size])
        for name, size in (("input_ids", "S"), ("attention_mask", "T"))
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "L", VOCAB])]
    for layer, window in enumerate(model.windows):
        normal = node("LayerNormalization", [x, "scale"], f"normal.{layer}")
        qkv = node("MatMul", [normal, f"qkv.{layer}"], f"packed.{layer}")
        past, present = (
            [f"{prefix}.{layer}.{part}" for part in ("key", "value")]
            for prefix in ("past_key_values", "present")
        )
        attributes = {"local_window_size": window} if window else {}
        if window and windowed:
            attributes["sliding_window_cache"] = 1
        names = [qkv, "", "", *past, "seqlens_k", "total_sequence_length", "cos", "sin"]
        names += ["", "", f"sinks.{layer}", "", "", "", "", "query_seqlens"]
        nodes.append(
            helper.make_node(
                "GroupQueryAttention", names, [f"mixed.{layer}", *present],
                domain="com.microsoft", num_heads=HEADS, kv_num_heads=KV_HEADS, do_rotary=1,
                **attributes,
            )
        )  # fmt: skip
        mixed = node("MatMul", [f"mixed.{layer}", f"out.{layer}"], f"projected.{layer}")
        x = node("Add", [x, mixed], f"x.{layer + 1}")
        for names, values, sequence in ((past, inputs, "P"), (present, outputs, "C")):
            shape = ["B", KV_HEADS, f"{sequence}{layer}", HEAD_DIM]
            values += [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names
            ]
    if logits == "last":
        index = node("Sub", ["valid", "one"], "index")
        index = node("Max", [index, "zero"], "index_from_zero")
        index = node("Unsqueeze", [index, "one"], "index_column")
        x = node("GatherND", [x, index], "x.last", batch_dims=1)
        x = node("Unsqueeze", [x, "one"], "x.column")
    node("LayerNormalization", [x, "scale"], "normal")
    node("MatMul", ["normal", "head"], "logits")
    initializers = [
        numpy_helper.from_array(value, name)
        for name, value in {**model.weights, **constants}.items()
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer.json without merges: one token a byte, and harmony's tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable}
    vocab |= {chr(256 + place): byte for place, byte in enumerate(shifted)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    added = [
        {"id": 256 + place, "content": content, "special": True, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for place, content in enumerate(SPECIALS)
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0", "added_tokens": added, "normalizer": None, "post_processor": None,
        "pre_tokenizer": {**byte_level, "trim_offsets": True},
        "decoder": {**byte_level, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_package(
    folder: Path,
    model: TinyModel,
    *,
    windowed: bool = True,
    logits: str = "last",
    kv_dtype: str = "float32",
) -> Path:
    folder.mkdir(parents=True)
    graph = build_graph(model, windowed=windowed, logits=logits)
    if kv_dtype != "float32":
        half = ir.serde.deserialize_model(graph)
        HalfPrecision(kv_dtype)(half)
        graph = ir.serde.serialize_model(half)
    onnx.save(graph, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [258, 264, 257], "do_sample": False})
    )
    layers = [{"window": w, "windowed": bool(windowed and w)} for w in model.windows]
    kv = {"dtype": kv_dtype, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "layers": layers}
    seal(
        folder,
        {
            "name": "tiny", "target": "cpu", "quant": "none", "min_runtime": "1.32",
            "graph": "model.onnx", "logits": logits, "context_length": CONTEXT,
            "vocab_size": VOCAB, "kv": kv, "tokenizer": {}, "source": {"name": "random"},
            "links": [], "versions": {},
            "session": {"intra_op_num_threads": 1, "providers": ["CPUExecutionProvider"]},
        },
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def model() -> TinyModel:
    return TinyModel.random()


@pytest.fixture(scope="session")
def package_folder(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> Path:
    """A package with window-sized KV buffers on the sliding layers. Do not write to it."""
    return write_package(tmp_path_factory.mktemp("packages") / "windowed", model)


@pytest.fixture(scope="session")
def package(package_folder: Path) -> Package:
    return Package.open(package_folder)


@pytest.fixture(scope="session")
def full_kv_package(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> Package:
    """The same model with full-length KV on every layer and every position's logits."""
    folder = tmp_path_factory.mktemp("packages") / "full"
    return Package.open(write_package(folder, model, windowed=False, logits="all"))


@pytest.fixture
def prompt() -> Callable[..., list[int]]:
    """prompt(length, seed): random ids without special tokens."""

    def make(length: int, seed: int = 1) -> list[int]:
        return [int(i) for i in np.random.default_rng(seed).integers(0, 256, length)]

    return make


@pytest.fixture(scope="session")
def oracle() -> openai_harmony.HarmonyEncoding:
    """OpenAI's own renderer."""
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(o200k())
    name = openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS
    return openai_harmony.load_harmony_encoding(name)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, package: Package) -> Script:
    """says(text): what the model will answer, marks written out; its logits are still computed.

    The scripted sampler also keeps the logits it was shown, in `says.logits`.
    """
    tokens: list[int] = []
    logits: list[NDArray[np.float32]] = []

    class Scripted:
        def __init__(self, *_: Any) -> None: ...

        def next(self, scores: NDArray[np.float32]) -> int:
            logits.append(scores.copy())
            if not tokens:
                raise Spoken
            return tokens.pop(0)

    def script(text: str) -> None:
        tokens[:] = encode(package, text)
        logits.clear()

    script.logits = logits  # type: ignore[attr-defined]
    monkeypatch.setattr(generation, "Sampler", Scripted)
    return script
