"""genai_config.json: what onnxruntime-genai needs to run the same package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.package_files import json_of
from gptoss_onnx.graph_passes.attention_spec import is_fused
from gptoss_onnx.runtimes.target import Target

# Its names of providers; without one it takes the CPU.
PROVIDERS = {"CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}


def genai_config(
    checkpoint: Checkpoint, target: Target, kv_windows: Sequence[int | None]
) -> dict[str, Any]:
    """Field names of onnxruntime-genai 0.18. Its KV buffers span the whole sequence."""
    spec, generation = checkpoint.spec, json_of(checkpoint, "generation_config.json")
    names = {
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    outputs = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    provider = PROVIDERS.get(target.provider)
    share = is_fused(spec.attention, target) and not any(kv_windows)
    options = [{provider: dict(target.provider_options)}] if provider else []
    decoder: dict[str, Any] = {
        "session_options": {"provider_options": options},
        "filename": "model.onnx",
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.num_heads,
        "num_hidden_layers": spec.num_layers,
        "num_key_value_heads": spec.num_kv_heads,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
        "outputs": {"logits": "logits", **outputs},
    }
    stop = generation.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    return {
        "model": {
            "type": "gptoss",
            "bos_token_id": generation.get("bos_token_id", checkpoint.config.get("bos_token_id")),
            "eos_token_id": stop,
            "pad_token_id": generation.get("pad_token_id", checkpoint.config.get("pad_token_id")),
            "context_length": spec.max_position_embeddings,
            "vocab_size": spec.vocab_size,
            "decoder": decoder,
        },
        "search": {
            "do_sample": bool(generation.get("do_sample", False)),
            "max_length": spec.max_position_embeddings,
            "past_present_share_buffer": share,
            "temperature": generation.get("temperature", 1.0),
            "top_k": generation.get("top_k", 50),
            "top_p": generation.get("top_p", 1.0),
        },
    }
