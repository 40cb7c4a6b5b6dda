"""Expert weights in a kernel's layout, one expert at a time, never inflated.

MXFP4 passes through byte for byte or with its codes turned around, becomes int8 exactly, or int4
from its code histograms; float experts are quantized directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import onnx_ir as ir

from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.quantization import Format
from gptoss_onnx.graph_passes.rounding import Rounding
from gptoss_onnx.graph_passes.weight_role import carry_role
from gptoss_onnx.graph_passes.weights import (
    Array,
    ExpertWeight,
    PackedPair,
    StoredBytes,
    parallel_map,
)
from gptoss_onnx.runtimes.errors import UserError


@runtime_checkable
class PackedSource(Protocol):
    """Experts stored as MXFP4, whose bytes the kernel reads as they are."""

    @property
    def blocks(self) -> StoredBytes: ...
    @property
    def scales(self) -> StoredBytes: ...


def packed_experts(
    weight: ExpertWeight, form: Format, rounding: Rounding, *, by_column: bool = False
) -> PackedPair:
    """Codes uint8 [E, N, K*bits/8] and scales [E, N, K/block], float32 or for MXFP4 E8M0.

    `by_column`: codes of MXFP4 as [E, K, N/2], the scales where they are.
    """
    experts, rows, columns = weight.source.shape
    by_column = by_column and form.kind == "mxfp4"
    if columns % form.block:
        raise UserError(
            f"{weight.name}: {columns} input features are not whole blocks of {form.block}; "
            "choose a smaller block size, as in --set experts=int4:32"
        )
    name = str(weight.name)  # the graph's own, which is gone when the stream is read

    def one(expert: int) -> tuple[Array, Array]:
        codes, scales = _pack(weight.source.read(expert), form, rounding, name, expert)
        if by_column:
            codes = mxfp4.transposed_codes(codes.reshape(rows, columns // 2))
        return codes, scales

    def pairs() -> Iterator[tuple[Array, Array]]:
        yield from parallel_map(one, range(experts))

    scale_dtype = ir.DataType.FLOAT8E8M0 if form.kind == "mxfp4" else ir.DataType.FLOAT
    pair = PackedPair(
        pairs,
        (experts, columns, rows // 2) if by_column else (experts, rows, columns * form.bits // 8),
        (experts, rows, columns // form.block),
        scale_dtype,
    )
    # By these names graphs of one package share what they read whole and what they read in parts.
    pair.packed.name = f"{name}_{str(form).partition(':')[0]}{'_columns' if by_column else ''}"
    pair.scales.name = f"{name}_scales"
    carry_role(weight, pair.packed, pair.scales)
    if form.kind == "mxfp4" and not by_column and isinstance(weight.source, PackedSource):
        pair.packed.origin, pair.scales.origin = weight.source.blocks, weight.source.scales
    return pair


def _pack(
    stored: Any, form: Format, rounding: Rounding, name: str, expert: int
) -> tuple[Array, Array]:
    """From what a source reads, float32 [N, K] or MXFP4 (blocks, scales), to codes and scales."""
    if form.kind == "mxfp4":
        return stored if isinstance(stored, tuple) else mxfp4.encode(stored)
    if isinstance(stored, tuple):
        blocks, scales = stored
        if form.bits == 8 and form.block == mxfp4.BLOCK:
            return mxfp4.to_int8(blocks, scales)
        if form.bits == 4 and not rounding.decodes(name, form, expert):
            return mxfp4.to_int4(blocks, scales, form.block)
        stored = mxfp4.decode(blocks, scales)
    return rounding.rounder(name, form, expert)(stored)
