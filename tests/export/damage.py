"""Every way a checkpoint can be wrong: how to make it so, and what its refusal must name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from gptoss_onnx.export.safetensors_folder import INDEX_FILE, SINGLE_FILE

Damage = Callable[[Path], object]
NORM = "model.norm.weight"
UP = "model.layers.0.mlp.experts.gate_up_proj"


def edit_json(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def read_parts(file: Path) -> tuple[dict[str, Any], bytes]:
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def write_parts(file: Path, header: bytes, data: bytes) -> None:
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


def edit_header(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = folder / SINGLE_FILE
    header, data = read_parts(file)
    edit(header)
    write_parts(file, json.dumps(header).encode(), data)


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    edit(tensors)
    save_file(tensors, folder / SINGLE_FILE)


def config(**fields: Any) -> Damage:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update(fields))


def header(edit: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: edit_header(folder, edit)


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    return lambda folder: edit_tensors(folder, edit)


def raw(edit: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / SINGLE_FILE
        file.write_bytes(edit(file.read_bytes()))

    return damage


def swap_header(edit: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        parsed, data = read_parts(folder / SINGLE_FILE)
        write_parts(folder / SINGLE_FILE, edit(json.dumps(parsed).encode()), data)

    return damage


def only_pickles(folder: Path) -> None:
    (folder / SINGLE_FILE).rename(folder / "pytorch_model.bin")


def both_layouts(folder: Path) -> None:
    (folder / INDEX_FILE).write_text("{}")


def overlap(entries: dict[str, Any]) -> None:
    length = np.diff(entries[NORM]["data_offsets"])[0]
    entries[NORM]["data_offsets"] = [0, int(length)]


def gap(entries: dict[str, Any]) -> None:
    del entries["model.layers.0.self_attn.sinks"]


def entry(**fields: Any) -> Damage:
    return header(lambda entries: entries[NORM].update(fields))


def mix(folder: Path) -> None:
    def edit(found: dict[str, torch.Tensor]) -> None:
        for name in ("gate_up_proj", "down_proj"):
            base = f"model.layers.1.mlp.experts.{name}"
            experts, rows, groups = found.pop(f"{base}_scales").shape
            del found[f"{base}_blocks"]
            found[base] = torch.zeros(experts, groups * 32, rows, dtype=torch.bfloat16)

    edit_tensors(folder, edit)


def config_a_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def link_out(folder: Path) -> None:
    outside = shutil.move(folder / SINGLE_FILE, folder.parent / "elsewhere.safetensors")
    (folder / SINGLE_FILE).symlink_to(outside)


LARGE = (100_000_001).to_bytes(8, "little")
SINGLE_CASES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ("config.json", "whole checkpoint")),
    "config not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        ("config.json", "not valid JSON", "again"),
    ),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), ("config.json", "object")),
    "config key twice": (
        lambda f: (f / "config.json").write_text('{"a": 1, "a": 2}'),
        ("config.json", "'a' twice"),
    ),
    "config not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff"), ("config.json",)),
    "config a folder": (config_a_folder, ("config.json", "cannot be read")),
    "other model": (config(model_type="llama"), ("'llama'", "GPT-OSS")),
    "pickles": (only_pickles, ("pytorch_model.bin", "run code", "safetensors")),
    "no weights": (lambda f: (f / SINGLE_FILE).unlink(), (SINGLE_FILE, INDEX_FILE, "again")),
    "file and index": (both_layouts, (SINGLE_FILE, INDEX_FILE, "remove")),
    "linked out": (link_out, (SINGLE_FILE, "links out", "copy")),
    "empty": (raw(lambda b: b""), (SINGLE_FILE, "not a safetensors file", "again")),
    "large header": (raw(lambda b: LARGE + b[8:]), (SINGLE_FILE, "not a safetensors file")),
    "git-lfs pointer": (raw(lambda b: b"version https://git-lfs"), ("not a safetensors file",)),
    "cut header": (raw(lambda b: b[:100]), (SINGLE_FILE, "truncated within its header")),
    "cut data": (raw(lambda b: b[:-1]), (SINGLE_FILE, "truncated: ", "again")),
    "extra data": (raw(lambda b: b + b"\0"), (SINGLE_FILE, "1 bytes more")),
    "header not JSON": (swap_header(lambda h: h[:-1]), (SINGLE_FILE, "not valid JSON")),
    "header not UTF-8": (swap_header(lambda h: b"\xff" + h), (SINGLE_FILE, "not valid JSON")),
    "header too deep": (swap_header(lambda h: b"[" * 100_000), (SINGLE_FILE, "deeply")),
    "header a list": (swap_header(lambda h: b"[]"), (SINGLE_FILE, "object")),
    "tensor twice": (
        swap_header(lambda h: h[:-1] + f', "{NORM}": {{}}}}'.encode()),
        (SINGLE_FILE, f"'{NORM}' twice"),
    ),
    "entry twice": (
        swap_header(lambda h: h.replace(b'"shape"', b'"dtype": "BF16", "shape"', 1)),
        (SINGLE_FILE, "'dtype' twice"),
    ),
    "overlap": (header(overlap), (SINGLE_FILE, "overlaps")),
    "gap": (header(gap), (SINGLE_FILE, "gap")),
    "unknown dtype": (
        entry(dtype="F8_E4M3", shape=[128]),
        (SINGLE_FILE, NORM, "F8_E4M3", "convert"),
    ),
    "dtype a number": (entry(dtype=1), (SINGLE_FILE, NORM)),
    "shape off": (entry(shape=[65]), (SINGLE_FILE, NORM, "65")),
    "shape negative": (entry(shape=[-8, -8]), (SINGLE_FILE, NORM, "entry")),
    "shape of floats": (entry(shape=[64.0]), (SINGLE_FILE, NORM)),
    "shape of bools": (entry(shape=[64, True]), (SINGLE_FILE, NORM)),
    "shape no list": (entry(shape=64), (SINGLE_FILE, NORM)),
    "offsets reversed": (entry(data_offsets=[128, 0]), (SINGLE_FILE, NORM)),
    "offsets three": (entry(data_offsets=[0, 128, 0]), (SINGLE_FILE, NORM)),
    "offset beyond": (entry(data_offsets=[1 << 40, (1 << 40) + 128]), (SINGLE_FILE, "gap")),
    "entry a number": (header(lambda h: h.update({NORM: 1})), (SINGLE_FILE, NORM)),
    "entry lacks": (header(lambda h: h[NORM].pop("dtype")), (SINGLE_FILE, NORM)),
    "missing tensor": (tensors(lambda t: t.pop(NORM)), (NORM, "[64]", "missing", "config.json")),
    "missing bias": (tensors(lambda t: t.pop(f"{UP}_bias")), (f"{UP}_bias", "missing")),
    "missing scales": (tensors(lambda t: t.pop(f"{UP}_scales")), (f"{UP}_scales", "missing")),
    "other shape": (
        tensors(lambda t: t.update({NORM: t[NORM][:32].clone()})),
        (NORM, "[32]", "[64]", "config.json"),
    ),
    "other rank": (
        tensors(lambda t: t.update({f"{UP}_blocks": t[f"{UP}_blocks"].flatten(2)})),
        (f"{UP}_blocks", "[4, 128, 32]", "[4, 128, 2, 16]"),
    ),
    "bytes for floats": (
        tensors(lambda t: t.update({NORM: t[NORM].to(torch.uint8)})),
        (NORM, "U8", "BF16/F16/F32"),
    ),
    "floats for bytes": (
        tensors(lambda t: t.update({f"{UP}_scales": t[f"{UP}_scales"].float()})),
        (f"{UP}_scales", "F32", "U8"),
    ),
    "unknown tensor": (
        tensors(lambda t: t.update({"lora\n_A": torch.zeros(1)})),
        (r"lora\n_A", "no part", "adapters"),
    ),
    "a layer too many": (
        config(num_hidden_layers=1, layer_types=["full_attention"]),
        ("model.layers.1.", "no part"),
    ),
    "head beside tied": (
        config(tie_word_embeddings=True),
        ("tie_word_embeddings", "lm_head.weight is not", "write false"),
    ),
    "mixed formats": (mix, ("packed", "dense", "layers.1.mlp.experts", "one format")),
    "odd sizes": (config(intermediate_size=63), ("63", "multiples of 32", "config")),
}


def index(edit: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: edit_json(folder / INDEX_FILE, edit)


def rename_shard(name: str) -> Damage:
    def edit(content: dict[str, Any]) -> None:
        content["weight_map"][NORM] = name

    return index(edit)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def double(folder: Path) -> None:
    first, second, *_ = shards(folder)
    found = load_file(second)
    name = next(iter(load_file(first)))
    save_file(found | {name: load_file(first)[name]}, second)


def link_shard_out(folder: Path) -> None:
    first = shards(folder)[0]
    outside = shutil.move(first, folder.parent / first.name)
    first.symlink_to(outside)


def shard_a_folder(folder: Path) -> None:
    first = shards(folder)[0]
    first.unlink()
    first.mkdir()


def link_shard_to_itself(folder: Path) -> None:
    first = shards(folder)[0]
    first.unlink()
    first.symlink_to(first)


FIRST = "model-00001-of-"
SHARDED_CASES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "missing shard": (lambda f: shards(f)[0].unlink(), (FIRST, "missing", "again")),
    "shard a folder": (shard_a_folder, (FIRST, "missing")),
    "cut shard": (lambda f: os.truncate(shards(f)[0], 5000), (FIRST, "truncated")),
    "parent folder": (rename_shard("../x.safetensors"), ("'../x.safetensors'", "not a file name")),
    "dots": (rename_shard(".."), ("'..'", "not a file name")),
    "absolute": (rename_shard("/etc/passwd"), ("'/etc/passwd'", "not a file name")),
    "windows": (rename_shard("..\\x"), ("not a file name",)),
    "drive": (rename_shard("C:x"), ("not a file name",)),
    "nul": (rename_shard("a\0b"), ("not a file name",)),
    "empty name": (rename_shard(""), ("''", "not a file name")),
    "linked out": (link_shard_out, (FIRST, "links out")),
    "linked to itself": (link_shard_to_itself, (FIRST,)),
    "index not JSON": (lambda f: (f / INDEX_FILE).write_text("{"), (INDEX_FILE, "not valid JSON")),
    "no weight_map": (index(lambda i: i.pop("weight_map")), (INDEX_FILE, "weight_map")),
    "map of numbers": (rename_shard(1), (INDEX_FILE, "weight_map")),  # type: ignore[arg-type]
    "listed, absent": (
        index(lambda i: i["weight_map"].update(ghost=i["weight_map"][NORM])),
        ("'ghost'", "lacks", ".safetensors"),
    ),
    "present, unlisted": (
        index(lambda i: i["weight_map"].pop(NORM)),
        (INDEX_FILE, NORM, "does not list"),
    ),
    "listed elsewhere": (
        index(lambda i: i["weight_map"].update({NORM: i["weight_map"][f"{UP}_blocks"]})),
        (INDEX_FILE, NORM, "does not list"),
    ),
    "doubled": (double, ("also in", FIRST, "again")),
}
