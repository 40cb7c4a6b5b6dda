"""genai_config.json: what onnxruntime-genai needs to run the same package."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.package_files import json_of
from gptoss_onnx.graph_passes.attention_spec import is_fused
from gptoss_onnx.runtimes.generation_config import GENERATION_CONFIG, sampling, stop_ids
from gptoss_onnx.runtimes.target import Target

GENAI_CONFIG = "genai_config.json"
# Its names of providers; without one it takes the CPU.
PROVIDERS = {"CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}


def genai_config(
    checkpoint: Checkpoint, target: Target, harmony_stops: Collection[int]
) -> dict[str, Any]:
    """Field names of onnxruntime-genai 0.18, which reads no null: what nobody says is left out.

    It is for packages without a windowed cache: its KV buffers span the whole sequence. Replies
    stop at `harmony_stops` as well as at the checkpoint's own, as in our runtimes.
    """
    spec, generation = checkpoint.spec, json_of(checkpoint, GENERATION_CONFIG)
    chosen = sampling(generation, f"{checkpoint.place}/{GENERATION_CONFIG}")
    said = dict(checkpoint.config) | {k: v for k, v in generation.items() if v is not None}
    names = {
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    outputs = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    provider = PROVIDERS.get(target.provider)
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
    stops = (stop_ids(said, f"{checkpoint.place}/{GENERATION_CONFIG}") or set()) | {*harmony_stops}
    tokens = {
        "bos_token_id": said.get("bos_token_id"),
        "eos_token_id": sorted(stops) or None,
        "pad_token_id": said.get("pad_token_id"),
    }
    return {
        "model": {
            "type": "gptoss",
            **{name: token for name, token in tokens.items() if token is not None},
            "context_length": spec.max_position_embeddings,
            "vocab_size": spec.vocab_size,
            "decoder": decoder,
        },
        "search": {
            "do_sample": chosen.do_sample,
            "max_length": spec.max_position_embeddings,
            "past_present_share_buffer": is_fused(spec.attention, target),
            "temperature": chosen.temperature,
            "top_k": chosen.top_k,
            "top_p": chosen.top_p,
        },
    }
