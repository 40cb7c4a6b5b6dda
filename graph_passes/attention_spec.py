"""What each layer's attention sees, and how much of a sequence its KV cache keeps on a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_onnx.runtimes.target import Target


@dataclass(frozen=True)
class AttentionSpec:
    """What a query of one layer sees of the tokens that come no later than itself."""

    window: int | None  # the last so many, its own included; None: all
    global_tokens: int = 0  # the sequence's first, seen however far behind the window

    def __post_init__(self) -> None:
        assert self.window is not None or not self.global_tokens, "all is seen already"


def is_fused(layers: Sequence[AttentionSpec], target: Target) -> bool:
    """Whether a kernel of the target does the attention of every layer."""
    return all(target.fuses_attention(layer.global_tokens) for layer in layers)


def kv_windows(
    layers: Sequence[AttentionSpec], target: Target, *, full: bool = False
) -> tuple[int | None, ...]:
    """Tokens that each layer's KV cache keeps, None where that is the whole sequence.

    `full` keeps everything. So does a layer with global tokens: they would leave with the others.
    """
    keeps_window = target.windowed_kv and not full and is_fused(layers, target)
    return tuple(
        layer.window if keeps_window and not layer.global_tokens else None for layer in layers
    )
