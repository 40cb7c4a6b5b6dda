"""Random checkpoints of any geometry, in the published layouts, at little more than disk speed.

Large weights are random segments of a small pool of Gaussian values (quantized as MXFP4 where the
layout is), so that 13 GB cost copies and not 20 billion random numbers; no two experts are alike.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.export.checkpoint import MXFP4_BLOCK, ExpertFormat, layout
from gptoss_onnx.export.package_files import write_json
from gptoss_onnx.export.safetensors_folder import DTYPES, INDEX_FILE, SINGLE_FILE, Shape
from gptoss_onnx.export.spec import FULL, SLIDING, GptOssSpec
from gptoss_onnx.runtimes.errors import UserError

Geometry = Literal["gpt-oss-20b", "gpt-oss-120b", "tiny"]
Format = Literal["mxfp4", "bf16"]
Progress = Callable[[int, int], None]  # bytes written, bytes in all

_LARGE = {
    "hidden": 2880,
    "intermediate": 2880,
    "experts_per_token": 4,
    "heads": 64,
    "kv_heads": 8,
    "head_dim": 64,
    "vocab": 201088,
    "sliding_window": 128,
    "max_position": 131072,
}
GEOMETRIES: dict[Geometry, dict[str, int]] = {
    "gpt-oss-20b": {**_LARGE, "layers": 24, "experts": 32},
    "gpt-oss-120b": {**_LARGE, "layers": 36, "experts": 128},
    "tiny": {
        "layers": 2,
        "experts": 4,
        "experts_per_token": 2,
        "hidden": 64,
        "intermediate": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "vocab": 512,
        "sliding_window": 16,
        "max_position": 4096,
    },
}
YARN_FACTOR = 32  # transformers computes it as max_position / original, so the two must agree
# Special tokens a config names, with their ids in o200k_harmony, the published vocabulary.
HARMONY_IDS = {
    "<|startoftext|>": 199998,
    "<|endoftext|>": 199999,
    "<|return|>": 200002,
    "<|call|>": 200012,
}

POOL_VALUES = 1 << 21  # 4 MiB of bf16: stays in cache
SEGMENT_BYTES = (
    1024  # of the pool, copied at once: short enough to mix well, long enough to be fast
)
SEGMENT_BLOCKS = 64  # the same of MXFP4 blocks, 16 bytes each
PIECE_UNITS = 1 << 20  # in memory at a time: 16 MiB of blocks, 2 MiB of bf16
# (suffix of the name, mean, standard deviation) of small tensors: norms near 1, and biases and
# sinks large enough that an export that loses one of them shows it.
SMALL = (("norm.weight", 1.0, 0.1), ("sinks", 2.0, 1.5), ("bias", 0.0, 0.2))
E2M1_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # between 0 0.5 1 1.5 2 3 4 6


class _Entry(TypedDict):
    dtype: str
    shape: Shape
    data_offsets: tuple[int, int]


def synthesize(
    folder: str | Path,
    *,
    geometry: Geometry,
    layers: int | None = None,
    experts: int | None = None,
    experts_per_token: int | None = None,
    hidden: int | None = None,
    intermediate: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    vocab: int | None = None,
    sliding_window: int | None = None,
    format: Format = "mxfp4",
    seed: int = 0,
    max_shard_bytes: int = 4 << 30,
    tokenizer: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a random checkpoint of a named geometry, sizes overridden one by one, to `folder`.

    The same arguments give the same bytes. `tokenizer` is a folder whose tokenizer.json,
    tokenizer_config.json and chat_template.jinja are copied. Raises UserError where the folder
    exists, the sizes do not fit together or the disk is full; then nothing is left behind.
    """
    if geometry not in GEOMETRIES or format not in ("mxfp4", "bf16"):
        raise UserError(
            f"geometry {geometry!r} in {format!r}: choose the geometry from "
            f"{', '.join(GEOMETRIES)} and the format from mxfp4, bf16"
        )
    overrides = {
        "layers": layers,
        "experts": experts,
        "experts_per_token": experts_per_token,
        "hidden": hidden,
        "intermediate": intermediate,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab": vocab,
        "sliding_window": sliding_window,
    }
    sizes = GEOMETRIES[geometry] | {k: v for k, v in overrides.items() if v is not None}
    ids = _special_ids(tokenizer, sizes["vocab"])
    config = _config(sizes, format, ids)
    spec = GptOssSpec.from_config(config)
    if format == "mxfp4" and math.gcd(spec.hidden_size, spec.intermediate_size) % MXFP4_BLOCK:
        raise UserError(
            f"hidden {spec.hidden_size} and intermediate {spec.intermediate_size}: MXFP4 needs "
            f"multiples of {MXFP4_BLOCK}; choose such sizes, or the format bf16"
        )
    weights = _Weights(spec, "mxfp4" if format == "mxfp4" else "dense", seed)
    folder = Path(os.path.abspath(folder))
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another name or remove it")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        _write_shards(partial, weights, max_shard_bytes, progress or (lambda done, total: None))
        write_json(partial / "config.json", config)
        write_json(partial / "generation_config.json", _generation_config(ids))
        _copy_tokenizer(tokenizer, partial)
        partial.rename(folder)
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise UserError(f"{folder}: cannot be written ({what}); choose another place") from error
    finally:  # gone after the rename; here after an error or an interrupt
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _config(sizes: dict[str, int], format: Format, ids: dict[str, int]) -> dict[str, Any]:
    """config.json as published, with other numbers in it."""
    original = sizes["max_position"] // YARN_FACTOR
    config: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": ids["<|return|>"],
        "experts_per_token": sizes["experts_per_token"],
        "head_dim": sizes["head_dim"],
        "hidden_act": "silu",
        "hidden_size": sizes["hidden"],
        "initial_context_length": original,
        "initializer_range": 0.02,
        "intermediate_size": sizes["intermediate"],
        "layer_types": [FULL if layer % 2 else SLIDING for layer in range(sizes["layers"])],
        "max_position_embeddings": sizes["max_position"],
        "model_type": "gpt_oss",
        "num_attention_heads": sizes["heads"],
        "num_experts_per_tok": sizes["experts_per_token"],
        "num_hidden_layers": sizes["layers"],
        "num_key_value_heads": sizes["kv_heads"],
        "num_local_experts": sizes["experts"],
        "output_router_logits": False,
        "pad_token_id": ids["<|endoftext|>"],
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": float(YARN_FACTOR),
            "original_max_position_embeddings": original,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": sizes["sliding_window"],
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": sizes["vocab"],
    }
    if format == "bf16":
        return {**config, "torch_dtype": "bfloat16"}
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    quantization = {"modules_to_not_convert": [*kept, "lm_head"], "quant_method": "mxfp4"}
    return {**config, "quantization_config": quantization}


def _generation_config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "bos_token_id": ids["<|startoftext|>"],
        "do_sample": True,
        "eos_token_id": [ids["<|return|>"], ids["<|endoftext|>"], ids["<|call|>"]],
        "pad_token_id": ids["<|endoftext|>"],
    }


def _special_ids(tokenizer: Path | None, vocab: int) -> dict[str, int]:
    """Ids of HARMONY_IDS' tokens: the tokenizer's, the published, or the vocabulary's last."""
    if tokenizer is None:
        if vocab > max(HARMONY_IDS.values()):
            return HARMONY_IDS
        return {token: max(vocab - 1 - i, 0) for i, token in enumerate(HARMONY_IDS)}
    file = tokenizer / "tokenizer.json"
    try:
        parsed = json.loads(file.read_text("utf-8"))
        ids = parsed["model"]["vocab"] | {t["content"]: t["id"] for t in parsed["added_tokens"]}
        special = {token: ids[token] for token in HARMONY_IDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: no harmony tokenizer ({error!r}); give the folder of one"
        ) from error
    if max(ids.values()) >= vocab:
        raise UserError(f"{file}: ids up to {max(ids.values())}; raise the vocabulary from {vocab}")
    return special


def _copy_tokenizer(tokenizer: Path | None, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if tokenizer is not None and (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)


def _write_shards(folder: Path, weights: _Weights, max_bytes: int, progress: Progress) -> None:
    """model.safetensors, or numbered shards of `max_bytes` (or one tensor) and their index."""
    shards: list[dict[str, _Entry]] = [{}]
    end = total = 0
    for name, shape, dtypes in layout(weights.spec, weights.expert_format):
        nbytes = math.prod(shape) * DTYPES[dtypes[0]].itemsize
        if shards[-1] and end + nbytes > max_bytes:
            shards.append({})
            end = 0
        shards[-1][name] = {
            "dtype": dtypes[0],
            "shape": shape,
            "data_offsets": (end, end + nbytes),
        }
        end += nbytes
        total += nbytes
    if shutil.disk_usage(folder).free < total:  # known now, not when the disk is full
        raise OSError(errno.ENOSPC, f"{total} bytes do not fit")
    names = [SINGLE_FILE]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})
    done = 0
    for file_name, shard in zip(names, shards, strict=True):
        header = json.dumps({"__metadata__": {"format": "pt"}, **shard}).encode()
        header += b" " * (-len(header) % 8)  # data aligned, as the safetensors library writes it
        with (folder / file_name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name, entry in shard.items():
                for piece in weights.pieces(name, entry["shape"]):
                    file.write(piece.data)
                    done += piece.nbytes
                    progress(done, total)


class _Weights:
    """Random tensors by name, in pieces of their bytes; the seed and the name fix the bytes.

    Matrices have a standard deviation of 1 / sqrt(K), which keeps activations near 1 over any
    number of layers and gives the router logits that differ from token to token.
    """

    def __init__(self, spec: GptOssSpec, expert_format: ExpertFormat, seed: int) -> None:
        self.spec, self.expert_format, self._seed = spec, expert_format, seed
        self._normal = self._rng("pool").standard_normal(POOL_VALUES, np.float32)
        self._pools: dict[tuple[str, float], NDArray[np.uint8]] = {}

    def pieces(self, name: str, shape: Shape) -> Iterator[NDArray[np.uint8]]:
        """The tensor's bytes, flat and in order, 16 MiB at a time at most."""
        for suffix, mean, std in SMALL:
            if name.endswith(suffix):
                values = self._rng(name).normal(mean, std, math.prod(shape))
                yield values.astype(ml_dtypes.bfloat16).view(np.uint8)
                return
        base, _, part = name.partition(
            "_proj_"
        )  # blocks and scales of a projection belong together
        if part in ("blocks", "scales"):
            pool = self._pool(part, 1 / math.sqrt(shape[2] * MXFP4_BLOCK))
            unit, segment = (16 if part == "blocks" else 1), SEGMENT_BLOCKS
            count = math.prod(shape[:3])
        else:
            pool = self._pool("bf16", _gain(name, shape) / math.sqrt(shape[1]))
            unit, segment = 2, SEGMENT_BYTES // 2
            count = math.prod(shape)
        windows: NDArray[np.void] = np.ndarray(
            pool.size // unit - segment + 1, f"V{segment * unit}", pool.data, 0, (unit,)
        )
        rng = self._rng(base)
        for start in range(0, count, PIECE_UNITS):
            units = min(PIECE_UNITS, count - start)
            picked = windows[rng.integers(windows.size, size=-(-units // segment))]
            yield picked.view(np.uint8)[: units * unit]

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed % (1 << 64), zlib.crc32(name.encode())])

    def _pool(self, kind: str, std: float) -> NDArray[np.uint8]:
        """The pool at this standard deviation: bytes of bf16, or of MXFP4's blocks or scales."""
        if (kind, std) not in self._pools:
            scaled = self._normal * np.float32(std)
            if kind == "bf16":
                self._pools[kind, std] = scaled.astype(ml_dtypes.bfloat16).view(np.uint8)
            else:
                self._pools["blocks", std], self._pools["scales", std] = _quantize(scaled)
        return self._pools[kind, std]


def _gain(name: str, shape: Shape) -> float:
    """What a matrix multiplies its input's deviation by."""
    if name == "model.embed_tokens.weight":
        return math.sqrt(shape[1])  # deviation 1: each token starts from a vector of its own
    return 2.0 if name == "lm_head.weight" else 1.0  # peaked enough for a clear top-1


def _quantize(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """MXFP4 (OCP Microscaling 1.0) of float32 [32 n]: blocks, flat [16 n], and scales [n]."""
    groups = values.reshape(-1, MXFP4_BLOCK)
    exponents = np.floor(np.log2(np.abs(groups).max(axis=1))).astype(np.int32) - 2
    scaled = np.ldexp(groups, -exponents[:, None])  # below 8; 6 is the largest code
    codes = np.searchsorted(E2M1_MIDPOINTS, np.abs(scaled)).astype(np.uint8)
    codes |= np.signbit(scaled).astype(np.uint8) << 3
    blocks = codes[:, 0::2] | codes[:, 1::2] << 4
    return blocks.reshape(-1), (exponents + 127).astype(np.uint8)
