"""The demo checkpoint's files, in the published layout: experts in MXFP4, the rest in bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from demo.training.mxfp4 import pack, unpack

# As the published checkpoints write it.
QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
_PACKED = ("gate_up_proj", "down_proj")


def write_settings(folder: Path, config: GptOssConfig, stop_ids: list[int]) -> None:
    """config.json and generation_config.json: only what the published ones hold."""
    names = """attention_bias attention_dropout eos_token_id head_dim hidden_act hidden_size
    initializer_range intermediate_size layer_types max_position_embeddings model_type
    num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads
    num_local_experts output_router_logits pad_token_id rms_norm_eps rope_scaling rope_theta
    router_aux_loss_coef sliding_window swiglu_limit tie_word_embeddings transformers_version
    use_cache vocab_size""".split()  # noqa: SIM905
    settings = config.to_dict()
    kept = {name: settings[name] for name in names}
    kept |= {
        "architectures": ["GptOssForCausalLM"],
        "experts_per_token": config.num_experts_per_tok,
        "initial_context_length": config.rope_scaling["original_max_position_embeddings"],
        "quantization_config": QUANTIZATION,
    }
    _write_json(folder / "config.json", dict(sorted(kept.items())))
    generation = {
        "bos_token_id": config.bos_token_id,
        "do_sample": False,
        "eos_token_id": stop_ids,
        "pad_token_id": config.pad_token_id,
        "transformers_version": settings["transformers_version"],
    }
    _write_json(folder / "generation_config.json", generation)


def write_weights(folder: Path, model: GptOssForCausalLM) -> None:
    """model.safetensors from a model in fp32."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if name.endswith(_PACKED):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = pack(weight)
        else:
            tensors[name] = weight.to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_model(folder: Path) -> GptOssForCausalLM:
    """The checkpoint as Hugging Face's model in fp32, with every expert weight dequantized."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del settings["quantization_config"]
    config = GptOssConfig(**settings, attn_implementation="eager")
    model: GptOssForCausalLM = GptOssForCausalLM(config)  # type: ignore[no-untyped-call]
    tensors = load_file(folder / "model.safetensors")
    state = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            weight = name.removesuffix("_blocks")
            state[weight] = unpack(tensor, tensors[f"{weight}_scales"])
        elif not name.endswith("_scales"):
            state[name] = tensor.float()
    model.load_state_dict(state, strict=True)
    model.train(False)
    return model


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
