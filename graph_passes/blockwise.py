"""Symmetric blockwise int4 and int8 weights: the bytes of MatMulNBits and of raw QMoE.

A block of ``block`` consecutive weights along K shares one float32 scale. There is no zero-point
tensor: code 8 (4 bits) or 128 (8 bits) is zero, and value = scale * (code - zero). Because the
code range [-8, 7] has one more step below zero, a *negative* scale is a real choice: it gives that
step to the positive side.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

# Weights a tile holds. A few float32 arrays of this size are alive at once: small enough for a
# core's caches, large enough that the work of a NumPy call exceeds its overhead (and the time the
# interpreter lock is held) by far. A quarter as much was 20 to 30% slower, twice as much no faster.
TILE = 1 << 17

# Candidate positions of a 4-bit block's extreme, in units of its scale. Below 7.5 nothing clips
# and both signs give the same codes; above it they clip different sides. 8 is the plain max/8
# rounding, so the search is never worse than it; positions beyond 8.5 clip the extreme itself,
# which pays in blocks of 64 and more. A grid ten times as fine lowers the RMS error by under 0.5%.
_UNCLIPPED = (6.3, 6.7, 7.1, 7.4)
_CLIPPED = (7.7, 8.0, 8.4, 8.9, 9.5)

# Byte -> its two 4-bit codes minus 8, low nibble first: two float32 seen as one 8-byte item [256].
_NIBBLES = (np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=-1) - 8).astype(np.float32)
_NIBBLE_PAIRS = _NIBBLES.view(np.uint64).reshape(-1)


def tiles(limit: int, *arrays: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Walk arrays of equal leading shape in C order, as 2-D tiles of about ``limit`` rows.

    Each array is [..., W] with its own W and comes out as [rows, W]: a view where its layout
    allows, else a copy of that tile alone (``reshape`` of a whole view would copy all of it).
    """
    if all(array.ndim == 1 or array.flags.c_contiguous for array in arrays):
        arrays = tuple(array.reshape(-1, array.shape[-1]) for array in arrays)
    rows = math.prod(arrays[0].shape[1:-1])
    if rows > limit:
        for parts in zip(*arrays, strict=True):
            yield from tiles(limit, *parts)
        return
    step = limit // rows  # an array without items is contiguous, so that rows is never 0
    for start in range(0, len(arrays[0]), step):
        yield tuple(array[start : start + step].reshape(-1, array.shape[-1]) for array in arrays)


def quantize_blocks(
    weight: npt.NDArray[Any], bits: int, block: int, importance: Float32 | None = None
) -> tuple[UInt8, Float32]:
    """Quantize weight [..., K] in blocks along K.

    Returns packed uint8 [..., ceil(K/block) * block * bits / 8] (4 bits: low nibble = even k) and
    float32 scales [..., ceil(K/block)], which may be negative. A last partial block is filled with
    the zero code; a block of zeros gets scale 0.

    4 bits: scale, sign and codes of least squared error among the candidates, each with its own
    least-squares scale; errors weigh as `importance` [K] says. 8 bits: the extreme becomes -128.

    ``weight`` is float32 or a type that float32 holds (float16, bfloat16), converted tile by tile.
    Raises TypeError for other types; ValueError for bits other than 4 and 8, an odd or
    non-positive block, an empty last axis, NaN or infinity.
    """
    _check(bits, block)
    check_weight(weight)
    *lead, k = weight.shape
    groups = -(-k // block)
    packed = np.empty((*lead, groups * block * bits // 8), np.uint8)
    scales = np.empty((*lead, groups), np.float32)
    flat_packed, flat_scales = packed.reshape(-1, block * bits // 8), scales.reshape(-1)
    weights = None if importance is None else _block_weights(importance, groups, block)
    end = 0
    for (rows,) in tiles(max(1, TILE // (groups * block)), weight):
        start, end = end, end + len(rows) * groups
        if k % block:
            rows = np.pad(rows, ((0, 0), (0, groups * block - k)))
        # Blocks lie along the last axis, [block, blocks]: reductions over a block and products
        # with a value per block are then whole-vector operations.
        columns = np.empty((block, end - start), np.float32)
        columns[...] = rows.reshape(-1, block).T
        extreme = _extreme(columns)
        columns /= np.where(extreme == 0, np.float32(1), extreme)
        if bits == 8:
            codes, relative = _solve8(columns)
        else:
            tiled = None if weights is None else np.tile(weights, (1, len(rows)))
            codes, relative = _solve4(columns, tiled)
            codes = codes[0::2] | codes[1::2] << np.uint8(4)
        flat_packed[start:end] = codes.T
        np.multiply(relative, extreme, out=flat_scales[start:end])
    return packed, scales


def check_weight(weight: npt.NDArray[Any]) -> None:
    """Raise TypeError for a type that float32 does not hold, ValueError for no last axis."""
    if not np.can_cast(weight.dtype, np.float32):
        raise TypeError(f"float32 does not hold weights of type {weight.dtype}")
    if weight.ndim == 0 or weight.shape[-1] == 0:
        raise ValueError(f"no weights to quantize in shape {weight.shape}")


def dequantize_blocks(
    packed: UInt8, scales: npt.NDArray[Any], bits: int, block: int, k: int
) -> Float32:
    """Undo `quantize_blocks`: values float32 [..., k] of its packed bytes and scales.

    packed is uint8 [..., groups * block * bits / 8], scales [..., groups], groups = ceil(k/block).
    Raises ValueError if the shapes do not agree with bits, block and k.
    """
    _check(bits, block)
    *lead, groups = scales.shape
    width = groups * block * bits // 8
    if k <= 0 or groups != -(-k // block) or packed.shape != (*lead, width):
        raise ValueError(
            f"packed {packed.shape} and scales {scales.shape} are not {bits}-bit blocks of {block}"
            f" over {k} weights"
        )
    weight = np.empty((*lead, k), np.float32)
    flat = weight.reshape(-1, k)
    end = 0
    for codes, scale in tiles(max(1, TILE // (groups * block)), packed, scales):
        start, end = end, end + len(codes)
        if bits == 4:
            values = np.take(_NIBBLE_PAIRS, codes, mode="clip").view(np.float32)
        else:
            values = codes.astype(np.float32) - 128
        values = values.reshape(len(codes), groups, block)
        values *= scale[..., None]
        flat[start:end] = values.reshape(len(codes), -1)[:, :k]
    return weight


def _check(bits: int, block: int) -> None:
    if bits not in (4, 8):
        raise ValueError(f"{bits}-bit blocks: only 4 and 8 bits are supported")
    if block <= 0 or block % 2:
        raise ValueError(f"block size {block} is not a positive even number")


def _extreme(columns: Float32) -> Float32:
    """Find the value of largest magnitude, with its sign, of each block in [block, blocks]."""
    high, low = columns.max(axis=0), columns.min(axis=0)
    extreme: Float32 = np.where(high >= -low, high, low)
    if not np.isfinite(high).all() or not np.isfinite(low).all():  # NaN goes through max and min
        raise ValueError("weights hold NaN or infinity")
    return extreme


def _solve8(unit: Float32) -> tuple[UInt8, Float32]:
    """Codes uint8 [block, blocks] and relative scales [blocks] of blocks whose extreme is 1."""
    unit *= -128
    np.rint(unit, out=unit)
    unit += 128  # 0 .. 256: the opposite extreme, +128, does not fit and clips
    np.minimum(unit, 255, out=unit)
    return unit.astype(np.uint8), np.full(unit.shape[1], -1 / 128, np.float32)


def _block_weights(importance: Float32, groups: int, block: int) -> Float32:
    """Importance in each block [block, groups], near 1 so that no sum under- or overflows."""
    padded = np.pad(importance.astype(np.float32), (0, groups * block - len(importance)))
    weights = padded.reshape(groups, block).T
    mean = weights.mean(axis=0)
    return np.asarray(weights / np.where(mean > 0, mean, 1) + np.float32(1e-6), np.float32)


def _solve4(unit: Float32, weights: Float32 | None) -> tuple[UInt8, Float32]:
    """As `_solve8`, with the candidate of least squared error, weighted by `weights` like `unit`.

    For codes q the best scale is <x,q>/<q,q>, and it leaves the squared error
    <x,x> - <x,q>^2/<q,q>, so the candidate with the largest <x,q>^2/<q,q> wins.
    """
    blocks = unit.shape[1]
    seen = unit if weights is None else unit * weights
    best = np.full(blocks, -1, np.float32)
    steps = np.empty(blocks, np.float32)  # winning units per scale; negative: the sign is flipped
    rounded, codes, work = (np.empty_like(unit) for _ in range(3))

    def consider(candidate: Float32, step: float) -> None:
        dot, square = _products(seen, candidate, weights, work)
        dot *= dot
        dot /= np.where(square > 0, square, np.float32(1))  # zeros have no other codes than zeros
        better = dot > best
        np.copyto(best, dot, where=better)
        np.copyto(steps, step, where=better)

    for step in _UNCLIPPED + _CLIPPED:
        np.multiply(unit, np.float32(step), out=rounded)
        np.rint(rounded, out=rounded)
        if step in _UNCLIPPED:
            consider(rounded, step)
        else:
            consider(np.clip(rounded, -8, 7, out=codes), step)
            consider(np.clip(rounded, -7, 8, out=codes), -step)
    np.multiply(unit, steps, out=codes)
    np.rint(codes, out=codes)
    np.clip(codes, -8, 7, out=codes)
    dot, square = _products(seen, codes, weights, work)
    dot /= np.where(square > 0, square, np.float32(1))
    codes += 8
    return codes.astype(np.uint8), dot


def _products(
    seen: Float32, codes: Float32, weights: Float32 | None, work: Float32
) -> tuple[Float32, Float32]:
    """Sum <x,q> and <q,q> of every block, float32 [blocks]; `seen` has x weighted already."""
    dot = np.add.reduce(np.multiply(seen, codes, out=work), axis=0)
    np.multiply(codes, codes, out=work)
    if weights is not None:
        work *= weights
    return dot, np.add.reduce(work, axis=0)


def pack4(codes: UInt8) -> UInt8:
    """Bytes [..., K/2] of 4-bit codes [..., K], low nibble first."""
    return np.ascontiguousarray(codes[..., 0::2] | codes[..., 1::2] << np.uint8(4))


def round_to_nearest(weight: npt.NDArray[Any], block: int) -> tuple[UInt8, Float32]:
    """As `quantize_blocks` at 4 bits, each block's largest magnitude over 8 as its scale.

    This is what most tools do, and what the search is measured against.
    """
    check_weight(weight)
    rows, k = weight.shape
    values = np.pad(weight.astype(np.float32), ((0, 0), (0, -k % block)))
    values = values.reshape(rows, -1, block)
    scales = np.abs(values).max(-1) / np.float32(8)
    if not np.isfinite(scales).all():
        raise ValueError("weights hold NaN or infinity")
    steps = np.where(scales == 0, np.float32(1), scales)
    codes = np.clip(np.rint(values / steps[..., None]), -8, 7) + 8
    return pack4(codes.astype(np.uint8).reshape(rows, -1)), scales
