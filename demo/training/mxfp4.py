"""MXFP4: blocks of 32 weights, each E2M1 (sign, 0 .. 6), times a power of two a block shares."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

BLOCK = 32
LARGEST = 6.0
MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_BOUNDS = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2


def _round(scaled: Tensor) -> Tensor:
    """To the nearest of the E2M1 values. By arithmetic: twice as fast as a table."""
    size = scaled.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return scaled.div(step).round_().mul_(step).clamp_(-LARGEST, LARGEST)


def best_exponents(weight: Tensor) -> Tensor:
    """The power of two of each block with the least squared error.

    `weight` is [.., blocks, 32, columns] with the block's members on the axis before the last;
    the exponents come as [.., blocks, 1, columns].
    """
    largest = weight.abs().amax(-2, keepdim=True).clamp(min=2.0**-100)
    # The power that takes the largest member to 4 .. 8; its neighbours trade clipping for detail.
    middle = largest.log2().floor() - 2
    best, least = middle, torch.full_like(middle, torch.inf)
    for exponent in (middle, middle - 1, middle + 1):
        error = (_round(weight / exponent.exp2()) * exponent.exp2() - weight).square()
        error = error.sum(-2, keepdim=True)
        best = torch.where(error < least, exponent, best)
        least = torch.minimum(least, error)
    return best


class StraightThrough(torch.autograd.Function):
    """Rounds in the forward pass; the gradient passes as if it had not."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, exponents: Tensor) -> Tensor:
        """`weight` [inputs, outputs] in blocks along its inputs, as the published layout has."""
        blocks = weight.view(-1, BLOCK, weight.shape[-1])
        scale = exponents.exp2()
        return _round(blocks / scale).mul_(scale).view_as(weight)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[E, inputs, outputs] to blocks [E, outputs, B, 16] and scales [E, outputs, B], B inputs/32.

    The published layout: rows are outputs, two values a byte with the first in the low nibble,
    scales with a bias of 127.
    """
    experts, inputs, outputs = weight.shape
    blocks = weight.float().reshape(experts, inputs // BLOCK, BLOCK, outputs)
    exponents = best_exponents(blocks)
    scaled = blocks / exponents.exp2()
    # Ties as torch.round takes them, so that packing changes nothing training has not seen.
    rounded = _round(scaled)
    codes = torch.searchsorted(_BOUNDS, rounded.abs().contiguous())
    codes = (codes + 8 * (rounded < 0)).to(torch.uint8).permute(0, 3, 1, 2)
    scales = (exponents + 127).to(torch.uint8).squeeze(2).permute(0, 2, 1)
    return (codes[..., ::2] | codes[..., 1::2] << 4).contiguous(), scales.contiguous()


def unpack(blocks: Tensor, scales: Tensor) -> Tensor:
    """The inverse of `pack`: fp32 weights [E, inputs, outputs]."""
    codes = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).long()
    signs = 1.0 - 2.0 * (codes >> 3)
    values = MAGNITUDES[codes & 7] * signs * (scales.float() - 127).exp2().unsqueeze(-1)
    return values.flatten(2).transpose(1, 2).contiguous()
