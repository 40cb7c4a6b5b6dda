"""The torch modules that are traced: GPT-OSS with its attention and experts as single ops.

Parameters carry the checkpoint's names, so initializers are bound by name later. They are only
ever fake tensors. Shapes: B batch, S new tokens, P past slots, T = P + S, H hidden, E experts,
I intermediate, N query heads, K key/value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptoss_onnx.export.custom_ops import DOMAIN
from gptoss_onnx.export.spec import GptOssSpec


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [B, S, H] -> [B, S, H]
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    def __init__(self, spec: GptOssSpec, layer: int) -> None:
        super().__init__()
        self.spec, self.attention = spec, spec.attention[layer]
        self.q_proj = nn.Linear(spec.hidden_size, spec.query_size)
        self.k_proj = nn.Linear(spec.hidden_size, spec.kv_size)
        self.v_proj = nn.Linear(spec.hidden_size, spec.kv_size)
        self.o_proj = nn.Linear(spec.query_size, spec.hidden_size)
        self.sinks = nn.Parameter(torch.empty(spec.num_heads))

    def forward(
        self, x: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.spec
        batch, new = x.shape[0], x.shape[1]
        present = [batch, spec.num_kv_heads, mask.shape[1], spec.head_dim]  # [B, K, T, D]
        out, key, value = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::WindowedAttention",
            (self.q_proj(x), self.k_proj(x), self.v_proj(x), self.sinks, *rope, mask, *past),
            {
                "num_heads": spec.num_heads,
                "kv_num_heads": spec.num_kv_heads,
                "head_dim": spec.head_dim,
                "window": self.attention.window or 0,
                "num_global_tokens": self.attention.global_tokens,
            },
            dtypes=(x.dtype,) * 3,
            shapes=([batch, new, spec.query_size], present, present),
            version=1,
        )
        return self.o_proj(out), key, value


class Experts(nn.Module):
    """Weights in the row-major orientation of the MXFP4 layout: [E, 2I, H] and [E, H, I]."""

    def __init__(self, spec: GptOssSpec) -> None:
        super().__init__()
        experts, hidden, inner = spec.num_experts, spec.hidden_size, spec.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(experts, 2 * inner))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))
        self.down_proj_bias = nn.Parameter(torch.empty(experts, hidden))


class MLP(nn.Module):
    def __init__(self, spec: GptOssSpec) -> None:
        super().__init__()
        self.spec = spec
        self.router = nn.Linear(spec.hidden_size, spec.num_experts)
        self.experts = Experts(spec)

    def forward(self, x: Tensor) -> Tensor:  # [B, S, H] -> [B, S, H]
        experts = self.experts
        (out,) = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::MoE",
            (
                x,
                self.router(x),
                experts.gate_up_proj,
                experts.gate_up_proj_bias,
                experts.down_proj,
                experts.down_proj_bias,
            ),
            {
                "top_k": self.spec.experts_per_token,
                "swiglu_limit": self.spec.swiglu_limit,
                "swiglu_alpha": self.spec.swiglu_alpha,
            },
            dtypes=(x.dtype,),
            shapes=(x.shape,),
            version=1,
        )
        return out


class Layer(nn.Module):
    def __init__(self, spec: GptOssSpec, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = Attention(spec, layer)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = MLP(spec)

    def forward(
        self, x: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, key, value = self.self_attn(self.input_layernorm(x), mask, rope, past)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x)), key, value


class Body(nn.Module):
    def __init__(self, spec: GptOssSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, layer) for layer in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)


class GptOss(nn.Module):
    """input_ids [B, S], attention_mask [B, T], past ([B, K, P, D] x 2) a layer -> logits, present.

    A mask slot is 1 for a token and 0 for right padding; slots stay where they were fed, so a
    row shorter than its batch keeps its holes. Positions count the ones.
    """

    def __init__(self, spec: GptOssSpec) -> None:
        super().__init__()
        self.model = Body(spec)
        # Two parameters where they are tied too: each is bound, and quantized, for its own kernel.
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        rows = [spec.max_position_embeddings, spec.head_dim // 2]
        self.cos_cache = nn.Parameter(torch.empty(rows))
        self.sin_cache = nn.Parameter(torch.empty(rows))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        x = self.model.embed_tokens(input_ids)  # [B, S, H]
        rope, present = (self.cos_cache, self.sin_cache), []
        for layer, past in zip(self.model.layers, past_key_values, strict=True):
            x, key, value = layer(x, attention_mask, rope, past)
            present.append((key, value))
        return self.lm_head(self.model.norm(x)), present
