"""The demo's configuration and a fast training forward over Hugging Face's own modules.

Every pair of a step shares the system message, so it is computed once: a step is some
segments behind one system message, each attending to that message and to itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from demo.training.mxfp4 import BLOCK, StraightThrough, best_exponents
from gptoss_onnx.runtimes.tokenizer import Tokenizer

NEGATIVE = torch.finfo(torch.float32).min


def configuration(tokenizer: Tokenizer, vocabulary: int) -> GptOssConfig:
    """GPT-OSS as published, but small: 6 layers of 8 experts, 2 of them active."""
    layers = 6
    return GptOssConfig(
        num_hidden_layers=layers,
        num_local_experts=8,
        num_experts_per_tok=2,
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=256,
        head_dim=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        rope_theta=150000.0,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        swiglu_limit=7.0,
        bos_token_id=tokenizer.special("<|startoftext|>"),
        eos_token_id=tokenizer.special("<|return|>"),
        pad_token_id=tokenizer.special("<|endoftext|>"),
        attn_implementation="eager",
    )


class SharedPrefix:
    """Runs a GptOssForCausalLM on segments that share a prefix."""

    def __init__(self, model: GptOssForCausalLM) -> None:
        # Any: torch types a module's children as tensors or modules.
        self.model: Any = model
        self.window: int = model.config.sliding_window
        # Exponents of the expert weights by parameter; empty while training without MXFP4.
        self.exponents: dict[Tensor, Tensor] = {}

    def refresh_exponents(self) -> None:
        """Choose the blocks' exponents anew: too slow for every step, and they hardly move."""
        with torch.no_grad():
            for layer in self.model.model.layers:
                experts = layer.mlp.experts
                for weight in (experts.gate_up_proj, experts.down_proj):
                    blocks = weight.unflatten(1, (-1, BLOCK))
                    self.exponents[weight] = torch.stack([best_exponents(b) for b in blocks])

    def loss(
        self, prefix: Tensor, segments: Tensor, lengths: Tensor, targets: Tensor
    ) -> tuple[Tensor, int]:
        """Mean cross entropy, and how many segments have every target on top.

        prefix [S], segments [P, L] padded behind their lengths [P]. targets [P, L] hold the next
        token, -100 where none is learnt. Greedy decoding writes exactly the targets that are all
        on top, so the count is the share of exact answers.
        """
        size, (count, width) = len(prefix), segments.shape
        valid = torch.arange(width) < lengths[:, None]  # [P, L]
        x = self.model.model.embed_tokens(torch.cat([prefix, segments[valid]]))  # [T, H]
        positions = torch.arange(size + width)
        cos, sin = self.model.model.rotary_emb(x, positions[None])
        place = torch.cat([positions[:size], positions[size:].expand_as(segments)[valid]])
        rope = cos[0, place, None], sin[0, place, None]  # [T, 1, D/2]
        distance = positions[:, None] - positions
        allowed = {
            "full_attention": distance >= 0,
            "sliding_attention": (distance >= 0) & (distance < self.window),
        }
        masks = {kind: torch.where(seen, 0.0, NEGATIVE) for kind, seen in allowed.items()}
        for layer in self.model.model.layers:
            h = layer.input_layernorm(x)
            mask = masks[layer.attention_type]
            x = x + self._attend(layer.self_attn, h, rope, mask, valid)
            x = x + self._experts(layer.mlp, layer.post_attention_layernorm(x))
        wanted = targets[valid]
        kept = wanted >= 0
        wanted = wanted[kept]
        logits = self.model.lm_head(self.model.model.norm(x[size:][kept]))
        wrong = valid.nonzero()[:, 0][kept][logits.argmax(-1) != wanted]
        return F.cross_entropy(logits, wanted), count - len(set(wrong.tolist()))

    def _attend(
        self,
        attention: Any,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """x [T, H]: the prefix, then the segments' tokens without padding."""
        count, width = valid.shape
        size = len(mask) - width
        dim = attention.head_dim
        q, k, v = (
            projection(x).view(len(x), -1, dim)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = _rotate(q, *rope) * attention.scaling, _rotate(k, *rope)
        shared = [t[None, :size] for t in (q, k, v)]
        first = _attention(shared[0], shared[1], shared[2], mask[:size, :size], attention.sinks)
        where = valid.flatten().nonzero()[:, 0]
        own = [
            t.new_zeros(count * width, t.shape[1], dim)
            .index_copy(0, where, t[size:])
            .view(count, width, -1, dim)
            for t in (q, k, v)
        ]
        keys, values = (
            torch.cat([t.expand(count, -1, -1, -1), o], 1)
            for t, o in zip(shared[1:], own[1:], strict=True)
        )
        second = _attention(own[0], keys, values, mask[size:], attention.sinks)
        out: Tensor = attention.o_proj(torch.cat([first[0], second.flatten(0, 1)[where]]))
        return out

    def _experts(self, mlp: Any, x: Tensor) -> Tensor:
        """Tokens sorted by expert: one matmul on contiguous rows for each."""
        experts, router = mlp.experts, mlp.router
        top, chosen = F.linear(x, router.weight, router.bias).topk(router.top_k, dim=-1)
        order = chosen.flatten().argsort(stable=True)
        token = order // router.top_k
        counts = chosen.flatten().bincount(minlength=experts.num_experts).tolist()
        outputs = []
        for expert, rows in enumerate(torch.split(x[token], counts)):
            if not len(rows):
                continue
            gate_up = torch.addmm(
                experts.gate_up_proj_bias[expert], rows, self._weight(experts.gate_up_proj, expert)
            )
            gate, up = gate_up.view(len(rows), -1, 2).unbind(-1)
            gate = gate.clamp(max=experts.limit)
            up = up.clamp(-experts.limit, experts.limit)
            hidden = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
            outputs.append(
                torch.addmm(
                    experts.down_proj_bias[expert], hidden, self._weight(experts.down_proj, expert)
                )
            )
        weights = top.softmax(-1).flatten()[order, None]
        return torch.zeros_like(x).index_add(0, token, torch.cat(outputs) * weights)

    def _weight(self, weight: Tensor, expert: int) -> Tensor:
        if weight not in self.exponents:
            return weight[expert]
        round_: Any = StraightThrough.apply
        rounded: Tensor = round_(weight[expert], self.exponents[weight][expert])
        return rounded


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor) -> Tensor:
    """q [B, L, N, D], k and v [B, K, G, D], mask [L, K] -> [B, L, N*D]."""
    batch, length, heads, dim = q.shape
    groups = k.shape[2]
    share = heads // groups
    # Heads of a group side by side, so that keys need not be repeated.
    q = (
        q.view(batch, length, groups, share, dim)
        .permute(0, 2, 3, 1, 4)
        .reshape(batch, groups, share * length, dim)
    )
    scores = (q @ k.permute(0, 2, 3, 1)).view(batch, groups, share, length, -1) + mask
    sink = sinks.view(1, groups, share, 1, 1).expand(batch, -1, -1, length, 1)
    probabilities = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    out = probabilities.reshape(batch, groups, share * length, -1) @ v.transpose(1, 2)
    return (
        out.view(batch, groups, share, length, dim)
        .permute(0, 3, 1, 2, 4)
        .reshape(batch, length, heads * dim)
    )
