"""A float weight [N, K] as blocks of integers along K, streamed."""

from __future__ import annotations

from collections.abc import Iterator

from gptoss_onnx.graph_passes.quantization import Format
from gptoss_onnx.graph_passes.rounding import Rounder
from gptoss_onnx.graph_passes.weight_role import carry_role
from gptoss_onnx.graph_passes.weights import Array, FloatWeight, PackedPair, parallel_map


def quantized_rows(
    weight: FloatWeight, form: Format, round_rows: Rounder, *, flat: bool = False
) -> PackedPair:
    """Codes uint8 [N, K/block, block*bits/8] and scales float32 [N, K/block] (MatMulNBits).

    `flat` gives the same codes as [N, K*bits/8], GatherBlockQuantized's shape.
    """
    rows, columns = weight.shape.numpy()
    blocks = -(-columns // form.block)
    block_bytes = form.block * form.bits // 8

    def pairs() -> Iterator[tuple[Array, Array]]:
        yield from parallel_map(round_rows, weight.chunks())

    packed_shape = (rows, blocks * block_bytes) if flat else (rows, blocks, block_bytes)
    made = PackedPair(pairs, packed_shape, (rows, blocks))
    carry_role(weight, made.packed, made.scales)
    return made
