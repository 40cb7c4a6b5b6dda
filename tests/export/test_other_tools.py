"""Checkpoints that other tools wrote: read where that is exact, else told what wrote them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.safetensors_folder import SINGLE_FILE
from tests.export.damage import config, edit_json, edit_tensors
from tests.export.test_checkpoint import Copy, refusal

Tensors = dict[str, torch.Tensor]
EXPERTS = "model.layers.{}.mlp.experts."


def renamed(rename: Callable[[str], str]) -> Callable[[Tensors], None]:
    def edit(found: Tensors) -> None:
        new = {rename(name): tensor for name, tensor in found.items()}
        found.clear()
        found.update(new)

    return edit


def experts_apart(found: Tensors, weight: Any, bias: Any) -> None:
    """Each fused projection of dense experts by what `weight` and `bias` make of it."""
    for layer in range(2):
        prefix = EXPERTS.format(layer)
        for module in ("gate_up", "down"):
            stored = found.pop(f"{prefix}{module}_proj").transpose(1, 2)  # [E, N, K]
            found |= {prefix + name: part.contiguous() for name, part in weight(module, stored)}
            values = found.pop(f"{prefix}{module}_proj_bias")
            found |= {prefix + name: part.contiguous() for name, part in bias(module, values)}


def unsloth(found: Tensors) -> None:
    def each(kind: str) -> Any:
        return lambda module, rows: [
            (f"{module}_projs.{expert}.{kind}", row) for expert, row in enumerate(rows)
        ]

    experts_apart(found, each("weight"), each("bias"))
    renamed(lambda name: name.replace("mlp.router.", "mlp.router.linear."))(found)


def halves(module: str, rows: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """[E, N, ...] as gate and up, whose rows take turns in it, or as it is."""
    if module == "down":
        return [("down", rows)]
    return [("gate", rows[:, 0::2]), ("up", rows[:, 1::2])]


def mlx(found: Tensors) -> None:
    def whole(kind: str) -> Any:
        return lambda module, rows: [
            (f"{half}_proj.{kind}", part) for half, part in halves(module, rows)
        ]

    experts_apart(found, whole("weight"), whole("bias"))


def llm_compressor(found: Tensors) -> None:
    def each(kind: str) -> Any:
        return lambda module, rows: [
            (f"{expert}.{half}_proj.{kind}", row)
            for half, part in halves(module, rows)
            for expert, row in enumerate(part)
        ]

    experts_apart(found, each("weight"), each("bias"))


def prefixed(prefix: str) -> Callable[[Tensors], None]:
    return renamed(lambda name: prefix + name)


def without_model(found: Tensors) -> None:
    renamed(lambda name: name.removeprefix("model."))(found)


def vision(found: Tensors) -> None:
    renamed(lambda name: name.replace("model.", "model.language_model.", 1))(found)


def compiled_layers(found: Tensors) -> None:
    renamed(lambda name: name.replace(".mlp.", "._orig_mod.mlp."))(found)


ANY_EXPERTS: dict[str, Callable[[Tensors], None]] = {
    "PEFT": prefixed("base_model.model."),
    "torch.compile": prefixed("_orig_mod."),
    "DataParallel": prefixed("module."),
    "two wrappers": prefixed("module._orig_mod."),
    "multimodal": prefixed("language_model."),
    "multimodal inside": vision,
    "compiled layers": compiled_layers,
    "no model.": without_model,
}
DENSE_EXPERTS = {"Unsloth": unsloth, "MLX": mlx, "llm-compressor": llm_compressor}


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    assert ours.spec == theirs.spec
    assert ours.expert_format == theirs.expert_format
    dense = {
        f"{EXPERTS.format(n)}{which}" for n in range(2) for which in ("gate_up_proj", "down_proj")
    }
    assert {*ours.tensors} - dense == {*theirs.tensors} - dense
    for name in {*ours.tensors} - dense:
        mine, their = ours.tensors[name], theirs.tensors[name]
        assert (mine.shape, mine.dtype, mine.nbytes) == (their.shape, their.dtype, their.nbytes)
        for rows in ((0, None), (1, 3)):
            expected = np.asarray(their.read(*rows), np.float32)
            np.testing.assert_array_equal(np.asarray(mine.read(*rows), np.float32), expected)
    for layer in range(2):
        for which in ("gate_up_proj", "down_proj"):
            mine = ours.expert_weight(layer, which)  # type: ignore[arg-type]
            their = theirs.expert_weight(layer, which)  # type: ignore[arg-type]
            assert mine.shape == their.shape
            for expert in range(mine.shape[0]):
                read = mine.read(expert), their.read(expert)
                both = zip(*read, strict=True) if isinstance(read[0], tuple) else [read]
                for one, other in both:
                    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["packed", "dense"])
@pytest.mark.parametrize("tool", ANY_EXPERTS)
def test_wrappers_names_are_taken_off(
    tool: str, kind: str, copy: Copy, request: pytest.FixtureRequest
) -> None:
    original: Path = request.getfixturevalue(kind)
    folder = copy(original)
    edit_tensors(folder, ANY_EXPERTS[tool])
    assert_same(open_checkpoint(folder), open_checkpoint(original))


@pytest.mark.parametrize("tool", DENSE_EXPERTS)
def test_unfused_experts_are_one_tensor(tool: str, dense: Path, copy: Copy) -> None:
    folder = copy(dense)
    edit_tensors(folder, DENSE_EXPERTS[tool])
    assert_same(open_checkpoint(folder), open_checkpoint(dense))


def test_canary_gate_and_up_the_other_way_round(dense: Path, copy: Copy) -> None:
    folder = copy(dense)
    edit_tensors(folder, mlx)
    swap = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
    edit_tensors(
        folder,
        renamed(lambda name: ".".join(swap.get(part, part) for part in name.split("."))),
    )
    with pytest.raises(AssertionError):
        assert_same(open_checkpoint(folder), open_checkpoint(dense))


def both(found: Tensors) -> None:
    found |= {f"_orig_mod.{name}": tensor.clone() for name, tensor in [*found.items()][:1]}


def without(*names: str) -> Callable[[Tensors], None]:
    def edit(found: Tensors) -> None:
        for name in names:
            del found[name]

    return edit


def after(first: Callable[[Tensors], None], then: Callable[[Tensors], None]) -> Any:
    def edit(found: Tensors) -> None:
        first(found)
        then(found)

    return edit


FIRST = EXPERTS.format(0)
INCOMPLETE: dict[str, tuple[Callable[[Tensors], None], tuple[str, ...]]] = {
    "twice": (both, ("_orig_mod.", "are both", "save the model once")),
    "an expert missing": (
        after(unsloth, without(f"{FIRST}gate_up_projs.1.weight")),
        (f"expert 1 of '{FIRST}gate_up_proj' is missing", "whole checkpoint"),
    ),
    "the last expert missing": (
        after(unsloth, without(f"{FIRST}down_projs.3.weight")),
        (f"{FIRST}down_proj is BF16 [3, 64, 64], expected", "[4, 64, 64]"),
    ),
    "gate alone": (
        after(mlx, without(f"{FIRST}up_proj.weight")),
        (f"of '{FIRST}gate_up_proj' there is gate alone",),
    ),
    "another shape": (
        after(
            unsloth,
            lambda f: f.update({f"{FIRST}down_projs.2.bias": f[f"{FIRST}down_projs.2.bias"][:5]}),
        ),
        ("down_projs.2.bias' is BF16 [5]", "alike"),
    ),
    "a vector as weight": (
        after(
            unsloth,
            lambda f: f.update(
                {
                    f"{FIRST}down_projs.{e}.weight": f[f"{FIRST}down_projs.{e}.weight"][0].clone()
                    for e in range(4)
                }
            ),
        ),
        ("no weight of an expert",),
    ),
    "both forms": (
        lambda f: f.update({f"{FIRST}down_projs.0.weight": torch.zeros(64, 64)}),
        (f"{FIRST}down_proj' is there, and so are parts", "keep one"),
    ),
}


@pytest.mark.parametrize(("edit", "names"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_parts_that_do_not_make_a_whole(edit: Any, names: Any, dense: Path, copy: Copy) -> None:
    folder = copy(dense)
    edit_tensors(folder, edit)
    message = refusal(folder)
    assert all(name in message for name in names), message


def only(*files: str) -> Callable[[Path], object]:
    """A folder with these files in place of its weights."""

    def change(folder: Path) -> None:
        (folder / SINGLE_FILE).unlink()
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"")

    return change


def adapter(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    content = {"peft_type": "LORA", "base_model_name_or_path": "openai/gpt-oss-20b"}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def inside_checkpoint(folder: Path) -> None:
    (folder / "checkpoint-500").mkdir()
    shutil.move(folder / SINGLE_FILE, folder / "checkpoint-500" / SINGLE_FILE)


def tensor(name: str, dtype: torch.dtype = torch.uint8) -> Callable[[Path], object]:
    return lambda folder: edit_tensors(
        folder, lambda found: found.update({name: torch.zeros(4, dtype=dtype)})
    )


Q = "model.layers.0.self_attn.q_proj"
OTHERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "GGUF": (only("gpt-oss-20b-Q4_K_M.gguf"), ("Q4_K_M.gguf' is GGUF", "give the checkpoint it")),
    "pickles": (only("pytorch_model.bin"), ("pytorch_model.bin", "safetensors")),
    "DCP": (only("__0_0.distcp"), ("distributed checkpoint", "accelerate merge-weights")),
    "DeepSpeed": (only("zero_to_fp32.py"), ("DeepSpeed", "zero_to_fp32.py")),
    "npz": (only("weights.npz"), ("weights.npz", "MLX")),
    "variant": (only("model.fp16.safetensors"), ("model.fp16.safetensors", "rename")),
    "trainer's output": (inside_checkpoint, ("checkpoint-500", "give that folder")),
    "adapter": (adapter, ("only an adapter to 'openai/gpt-oss-20b'", "merge_and_unload")),
    "adapter beside": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        ("a model and adapter_config.json", "remove adapter_*"),
    ),
    "bitsandbytes": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("config.json: quantized by bitsandbytes", "model.dequantize()"),
    ),
    "bitsandbytes, no method": (
        config(quantization_config={"load_in_8bit": True}),
        ("quantized by bitsandbytes",),
    ),
    "AWQ": (config(quantization_config={"quant_method": "awq"}), ("quant_method 'awq'", "made")),
    "GPTQ": (config(quantization_config={"quant_method": "gptq"}), ("'gptq'", "MXFP4 as publish")),
    "no method": (config(quantization_config={}), ("quant_method None",)),
    "no object": (config(quantization_config=4), ("quant_method None",)),
    "MLX, config": (config(quantization={"bits": 4}), ("MLX's own", "--dequantize")),
    "MLX, codes": (tensor(f"{Q}.scales"), ("MLX's quantized weights",)),
    "bitsandbytes' names": (tensor(f"{Q}.weight.absmax"), ("bitsandbytes' blocks",)),
    "GPTQ's names": (tensor(f"{Q}.qweight", torch.int32), ("GPTQ's or AWQ's codes",)),
    "FP8": (tensor(f"{Q}.weight_scale", torch.float32), ("compressed-tensors' or FP8",)),
    "LoRA": (tensor(f"{Q}.lora_A.default.weight"), ("an adapter that is not merged",)),
    "LoRA's base": (tensor(f"{Q}.base_layer.weight"), ("an adapter that is not merged",)),
    "original": (tensor("block.0.attn.qkv.weight"), ("OpenAI's own layout", "one above")),
    "GGUF's names": (tensor("blk.0.attn_q.weight"), ("named as in GGUF",)),
    "integers": (
        lambda folder: edit_tensors(
            folder, lambda f: f.update({f"{Q}.bias": f[f"{Q}.bias"].to(torch.int64)})
        ),
        (f"{Q}.bias has dtype 'I64'", "convert"),
    ),
}


@pytest.mark.parametrize(("change", "names"), OTHERS.values(), ids=OTHERS.keys())
def test_other_formats_are_told(change: Any, names: Any, packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    change(folder)
    message = refusal(folder)
    assert all(name in message for name in names), message


def test_a_stale_note_of_mxfp4_is_no_harm(dense: Path, copy: Copy) -> None:
    """A model that was dequantized by hand may still say how it was stored before."""
    folder = copy(dense)
    config(quantization_config={"quant_method": "mxfp4"})(folder)
    assert open_checkpoint(folder).expert_format == "dense"


def test_a_text_beside_the_weights(packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    (folder / "LICENSE").write_bytes(b"caf\xe9\r\n")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.text("absent.json") is None
    assert (checkpoint.text("LICENSE") or "").encode("utf-8", "surrogateescape") == b"caf\xe9\r\n"
    before = checkpoint.fingerprint()
    edit_json(folder / "config.json", lambda content: content.update(note=1))
    assert open_checkpoint(folder).fingerprint() != before
