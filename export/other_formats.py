"""What other tools leave, told by its files, its config or its tensors' names: what to do with it.

Refused are weights in a form that an export does not read, or that are not a whole model's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptoss_onnx.export.safetensors_folder import INDEX_FILE, SINGLE_FILE, TensorView, show
from gptoss_onnx.runtimes.errors import UserError

READ = "MXFP4 as published, bfloat16, float16 or float32"
SOURCE = f"give the checkpoint it was made from, in {READ}"
_MERGE = "merge it into its base model (PEFT: merge_and_unload(), then save_pretrained())"
# Files by which a folder without model.safetensors is known, and what to do with it.
_FILES: tuple[tuple[str, str], ...] = (
    ("*.gguf", f"GGUF, llama.cpp's format: {SOURCE}"),
    ("*.distcp", "a distributed checkpoint of training: consolidate it with accelerate "
     "merge-weights"),
    ("zero_to_fp32.py", "a DeepSpeed checkpoint: consolidate it with its own zero_to_fp32.py, "
     "--safe_serialization"),
    ("*.npz", f"MLX's or NumPy's format: {SOURCE}"),
    ("*.onnx", f"ONNX, an export already: {SOURCE}"),
    ("*.h5", f"Keras' format: {SOURCE}"),
    ("*.msgpack", f"Flax' format: {SOURCE}"),
)  # fmt: skip
_NAMES: tuple[tuple[str, str], ...] = (
    (r".*\.(lora_\w+|base_layer|modules_to_save)\b.*", f"an adapter that is not merged: {_MERGE}"),
    (
        r".*\.(absmax|nested_absmax|quant_map|nested_quant_map|SCB|quant_state\..*)",
        f"bitsandbytes' blocks: {SOURCE}, or save it after model.dequantize()",
    ),
    (r".*\.(qweight|qzeros|g_idx)", f"GPTQ's or AWQ's codes: {SOURCE}"),
    (
        r".*\.(weight_packed|weight_scale|weight_scale_inv|input_scale|weight_zero_point)",
        f"compressed-tensors' or FP8 codes: {SOURCE}",
    ),
    (r".*_proj\.(scales|biases)", f"MLX's quantized weights: {SOURCE}, or mlx_lm's --dequantize"),
    (
        r"block\.\d+\..*|(un)?embedding\.weight",
        "OpenAI's own layout (original/): give the folder of the Hugging Face layout, one above",
    ),
    (r"blk\.\d+\..*|token_embd\.weight", f"named as in GGUF: {SOURCE}"),
)


def refuse_folder(folder: Path) -> None:
    """UserError for a folder that holds no model of safetensors, or an adapter to one."""
    adapter = folder / "adapter_config.json"
    whole = any((folder / name).exists() for name in (SINGLE_FILE, INDEX_FILE))
    if adapter.exists():
        if whole:
            raise UserError(
                f"{folder}: holds a model and adapter_config.json, over which transformers loads "
                "the adapter's base model; remove adapter_* if it is merged, else merge it first"
            )
        raise UserError(f"{folder}: only an adapter{_base_of(adapter)}; {_MERGE}")
    if whole:
        return
    for pattern, what in _FILES:
        if files := sorted(file.name for file in folder.glob(pattern)):
            raise UserError(f"{folder}: {show(files[0])} is {what.replace(': ', '; ', 1)}")
    pickles = [file.name for kind in ("bin", "pt", "pth") for file in folder.glob(f"*.{kind}")]
    if pickles:
        raise UserError(
            f"{folder}: only pickled weights ({show(sorted(pickles)[0])}), which can run code "
            "when loaded; convert them to safetensors where that does no harm, or get a release "
            "in safetensors"
        )
    below = {
        path.parent.name for name in (SINGLE_FILE, INDEX_FILE) for path in folder.glob(f"*/{name}")
    }
    if inner := sorted(below - {"original"}):  # OpenAI's own layout, for which names tell
        raise UserError(
            f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}, but {show(inner)} below it "
            "has one; give that folder"
        )
    if others := sorted(file.name for file in folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE} that lists {show(others[0])}; rename "
            f"a file that holds all weights to {SINGLE_FILE}, or get the index of several"
        )


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads(adapter.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" to {show(base)}" if isinstance(base, str) else ""


def refuse_config(config: Mapping[str, Any]) -> None:
    """UserError for a config.json of weights in another tool's codes."""
    told = config.get("quantization_config")
    method = told.get("quant_method") if isinstance(told, Mapping) else None
    if "quantization" in config:
        raise UserError(
            f"config.json: quantization is {show(config['quantization'])}, MLX's own; {SOURCE}, or "
            "mlx_lm's --dequantize"
        )
    if told is None or method == "mxfp4":
        return
    if isinstance(told, Mapping) and (told.get("load_in_4bit") or told.get("load_in_8bit")):
        method = "bitsandbytes"
    if method == "bitsandbytes":
        raise UserError(
            f"config.json: quantized by bitsandbytes; {SOURCE}, or save it after model.dequantize()"
        )
    raise UserError(f"config.json: quantization_config has quant_method {show(method)}; {SOURCE}")


def refuse_names(folder: Path, found: Mapping[str, TensorView]) -> None:
    """UserError for tensors that another tool has written in a form of its own."""
    for pattern, what in _NAMES:
        if (name := _first(pattern, found)) is not None:
            raise UserError(f"{folder}: {show(name)} is {what.replace(': ', '; ', 1)}")


def _first(pattern: str, names: Iterable[str]) -> str | None:
    known = re.compile(pattern, re.DOTALL)
    return next((name for name in names if known.fullmatch(name)), None)
