"""MXFP4: the codec of GPT-OSS expert weights, and its conversions to int8 and int4 blocks.

32 weights along K are 16 bytes of two E2M1 codes, low nibble first (`*_blocks` [..., G, 16]), and
one E8M0 scale byte (`*_scales` [..., G]): value = E2M1[code] * 2^(scale - 127).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss_onnx.graph_passes.blockwise import (
    TILE,
    Float32,
    UInt8,
    check_weight,
    quantize_blocks,
    tiles,
)

BLOCK = 32
# E2M1 value of each code; bit 3 is the sign, so code 8 is -0.
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([VALUES, -VALUES])
# The largest scale byte whose 6 * 2^(byte - 127) float32 still holds.
_MAX_SCALE = 252

_BYTES = np.arange(256)
_LOW, _HIGH = _BYTES & 15, _BYTES >> 4
_PAIRS = np.stack([VALUES[_LOW], VALUES[_HIGH]], axis=-1)  # byte -> two values [256, 2]
# byte -> two int8 codes, 2 * E2M1 + 128, and byte -> 2^(byte - 127).
_INT8 = (2 * _PAIRS + 128).astype(np.uint8)
_POWERS = np.ldexp(np.float32(1), np.arange(255) - 127).astype(np.float32)


def decode(blocks: UInt8, scales: UInt8) -> Float32:
    """Exact values float32 [..., G * 32] of blocks uint8 [..., G, 16] and scales uint8 [..., G].

    Raises ValueError for shapes that do not agree, for a NaN scale (255) and for a value that
    float32 does not hold (only scales 253 and 254 have such).
    """
    _check(blocks, scales)
    *lead, groups = scales.shape
    weight = np.empty((*lead, groups * BLOCK), np.float32)
    pairs, flat = _PAIRS.view(np.uint64).reshape(-1), weight.reshape(-1, BLOCK)
    end = 0
    for code, scale in tiles(TILE // BLOCK, blocks, scales[..., None]):
        start, end = end, end + len(code)
        np.take(pairs, code, out=flat[start:end].view(np.uint64), mode="clip")
        with np.errstate(over="ignore"):  # reported below, as an error
            flat[start:end] *= _powers(scale)
        if scale.max() > _MAX_SCALE and not np.isfinite(flat[start:end]).all():
            raise ValueError("an MXFP4 value is beyond float32")
    return weight


def encode(weight: npt.NDArray[Any]) -> tuple[UInt8, UInt8]:
    """Blocks uint8 [..., K/32, 16] and scales uint8 [..., K/32] nearest to weight [..., K].

    Each block takes the exponent of least squared error among that of its maximum and the two
    beside it; codes round half to even. Values that are MXFP4 already come back exactly.

    ``weight`` is float32 or a type that float32 holds (float16, bfloat16), converted tile by tile.
    Raises TypeError for other types; ValueError if K is not a positive multiple of 32, or for NaN
    or infinity.
    """
    check_weight(weight)
    if weight.shape[-1] % BLOCK:
        raise ValueError(f"shape {weight.shape} does not end in a multiple of {BLOCK}")
    *lead, k = weight.shape
    blocks = np.empty((*lead, k // BLOCK, 16), np.uint8)
    scales = np.empty((*lead, k // BLOCK), np.uint8)
    flat_blocks, flat_scales = blocks.reshape(-1, 16), scales.reshape(-1)
    end = 0
    for (rows,) in tiles(max(1, TILE // k), weight):
        start, end = end, end + len(rows) * (k // BLOCK)
        columns = np.ascontiguousarray(rows.reshape(-1, BLOCK).T, np.float32)  # [32, blocks]
        codes, flat_scales[start:end] = _nearest(columns)
        flat_blocks[start:end] = (codes[0::2] | codes[1::2] << np.uint8(4)).T
    return blocks, scales


def to_int8(blocks: UInt8, scales: UInt8) -> tuple[UInt8, Float32]:
    """The same values, exactly, as int8 blocks of 32: packed uint8 [..., G * 32] and float32 scales
    [..., G], in the layout of `blockwise.quantize_blocks`.

    Raises ValueError for shapes that do not agree and for a NaN scale (255).
    """
    _check(blocks, scales)
    *lead, groups = scales.shape
    packed = np.empty((*lead, groups * BLOCK), np.uint8)
    halves = np.empty(scales.shape, np.float32)
    pairs = _INT8.view(np.uint16).reshape(-1)
    flat, flat_halves = packed.reshape(-1, BLOCK), halves.reshape(-1, 1)
    end = 0
    for code, scale in tiles(TILE // BLOCK, blocks, scales[..., None]):
        start, end = end, end + len(code)
        np.take(pairs, code, out=flat[start:end].view(np.uint16), mode="clip")
        np.multiply(_powers(scale), np.float32(0.5), out=flat_halves[start:end])
    return packed, halves


def to_int4(blocks: UInt8, scales: UInt8, block: int = BLOCK) -> tuple[UInt8, Float32]:
    """The nearest int4 blocks: packed uint8 [..., ceil(K/block) * block / 2] and float32 scales
    [..., ceil(K/block)] with K = G * 32, in the layout of `blockwise.quantize_blocks`.

    Blocks of 16 and 32 get the codes, scale and sign of least squared error among all scales from
    0.5 to 1 times their power of two (larger ones serve only contrived blocks, such as multiples of
    1.5), from the histogram of their codes alone. Other multiples of 32 span several exponents and
    are quantized as floats.
    Raises ValueError for shapes that do not agree, for a NaN scale (255), for another block size
    and, where it goes through floats, for a value that float32 does not hold.
    """
    _check(blocks, scales)
    if block not in (16, BLOCK):
        if block <= 0 or block % BLOCK:
            raise ValueError(f"block size {block} is neither 16 nor a multiple of {BLOCK}")
        return _through_floats(blocks, scales, block)
    *lead, groups = scales.shape
    packed = np.empty((*lead, groups * 16), np.uint8)
    out_scales = np.empty((*lead, groups * BLOCK // block), np.float32)
    flat, flat_scales = packed.reshape(-1, block // 2), out_scales.reshape(-1)
    end = 0
    for code, scale in tiles(TILE // BLOCK, blocks, scales[..., None]):
        part = code.reshape(-1, block // 2)
        start, end = end, end + len(part)
        choice, relative = _search(part)
        np.take(_RECODE, part + choice[:, None] * np.uint16(256), out=flat[start:end], mode="clip")
        power = np.repeat(_powers(scale)[:, 0], BLOCK // block)
        np.multiply(relative, power, out=flat_scales[start:end])
    return packed, out_scales


def transposed_codes(packed: UInt8) -> UInt8:
    """4-bit codes uint8 [N, K/2] as [K, N/2], low nibble the even row or column in both.

    It is its own inverse. Raises ValueError for another rank and for an odd N.
    """
    if packed.ndim != 2 or len(packed) % 2:
        raise ValueError(f"codes {packed.shape} are not an even number of packed rows")
    even, odd = packed[0::2], packed[1::2]  # [N/2, K/2]
    columns = np.empty((2 * packed.shape[1], len(packed) // 2), np.uint8)
    np.bitwise_or((even & np.uint8(15)).T, (odd << np.uint8(4)).T, out=columns[0::2])
    np.bitwise_or((even >> np.uint8(4)).T, (odd & np.uint8(240)).T, out=columns[1::2])
    return columns


def shifted(scales: UInt8, exponent: int) -> UInt8:
    """Scale bytes of the values times 2^exponent, which is 1 or less. NaN (255) stays, and what
    lies below the smallest power becomes that: float16 does not tell it from 0.
    """
    smaller = np.maximum(scales, np.uint8(-exponent)) - np.uint8(-exponent)
    return np.where(scales == 255, scales, smaller)


def _check(blocks: UInt8, scales: UInt8) -> None:
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8:
        raise ValueError(f"MXFP4 blocks and scales are uint8, not {blocks.dtype}, {scales.dtype}")
    if scales.ndim == 0 or blocks.shape != (*scales.shape, 16):
        raise ValueError(f"blocks {blocks.shape} are not scales {scales.shape} by 16 bytes")


def _powers(scale: UInt8) -> Float32:
    """2^(scale - 127), float32 of the same shape; ValueError for the NaN scale 255."""
    if scale.max() == 255:
        raise ValueError("an MXFP4 scale is NaN (255)")
    return _POWERS[scale]


def _nearest(columns: Float32) -> tuple[UInt8, UInt8]:
    """Codes uint8 [32, blocks] and scale bytes uint8 [blocks] of columns float32 [32, blocks]."""
    largest = np.abs(columns).max(axis=0)
    if not np.isfinite(largest).all():
        raise ValueError("weights hold NaN or infinity")
    # frexp: largest = m * 2^e with m in [0.5, 1); at 2^(e-3) it lies in [4, 8), where E2M1 ends.
    exponent = np.clip(np.frexp(largest)[1] - 3 + 127, 0, _MAX_SCALE)
    best = np.full(largest.shape, np.inf, np.float32)
    codes = np.zeros(columns.shape, np.uint8)
    chosen = np.zeros(largest.shape, np.uint8)
    for neighbour in (0, 1, -1):
        byte = np.clip(exponent + neighbour, 0, _MAX_SCALE).astype(np.uint8)
        unit = columns / _POWERS[byte]
        candidate = _round(unit)
        unit -= VALUES[candidate]
        # Errors are in units of the candidate's own power; make them comparable.
        squares = np.square(unit, out=unit).sum(axis=0)
        squares = np.ldexp(squares, 2 * (byte.astype(np.int32) - exponent))
        better = squares < best
        np.copyto(best, squares, where=better)
        np.copyto(chosen, byte, where=better)
        np.copyto(codes, candidate, where=better)
    return codes, chosen


def _round(unit: Float32) -> UInt8:
    """E2M1 codes nearest to unit, ties to the even code, saturating at 6; the sign of 0 is kept."""
    size = np.abs(unit)
    # Steps of 0.5 up to 2, of 1 up to 4, of 2 up to 6; each part rounds by itself.
    code = np.rint(2 * np.minimum(size, 2))
    code += np.rint(np.clip(size, 2, 4) - 2)
    code += np.rint((np.clip(size, 4, 6) - 4) / 2)
    codes: UInt8 = code.astype(np.uint8) | np.signbit(unit).astype(np.uint8) << np.uint8(3)
    return codes


def _through_floats(blocks: UInt8, scales: UInt8, block: int) -> tuple[UInt8, Float32]:
    """`to_int4` for blocks of several exponents: a few rows at a time as float32."""
    *lead, groups = scales.shape
    width = -(-groups * BLOCK // block)
    packed = np.empty((*lead, width * block // 2), np.uint8)
    out_scales = np.empty((*lead, width), np.float32)
    step = max(1, 8 * TILE // (groups * BLOCK))
    for index in np.ndindex(*lead[:-1]):
        for row in range(0, lead[-1] if lead else 1, step):
            part = (*index, slice(row, row + step)) if lead else ()
            weight = decode(blocks[part], scales[part])
            packed[part], out_scales[part] = quantize_blocks(weight, 4, block)
    return packed, out_scales


def _candidates() -> npt.NDArray[np.int64]:
    """Every way a scale from 0.5 up to 1 rounds the E2M1 values: q int64 [C, 16].

    The codes of a scale change only where a value over it crosses a half, so one scale between
    each two such crossings, with both signs, covers all scales. At 0.5 all up to 3.5 is exact; at 1
    the halves are lost. Only where -8 occurs do the two signs differ in more than the sign of q.
    """
    crossings = np.unique((VALUES[1:8, None] / np.arange(0.5, 8)).round(6))
    ends = np.concatenate([[0.5], crossings[(crossings > 0.5) & (crossings <= 1)]])
    scales = np.concatenate([[0.5], (ends[1:] + ends[:-1]) / 2])
    kept: list[npt.NDArray[np.int64]] = []
    for scale in np.stack([scales, -scales], axis=1).reshape(-1):
        codes = np.clip(np.rint(VALUES / scale), -8, 7).astype(np.int64)
        if not any(np.array_equal(codes, old) or np.array_equal(-codes, old) for old in kept):
            kept.append(codes)
    return np.stack(kept)


def _counters(first: int) -> npt.NDArray[np.uint64]:
    """byte -> eight one-byte counters of the codes first .. first + 7 in it, uint64 [256]."""
    codes = first + np.arange(8)
    counts = (_LOW[:, None] == codes).astype(np.uint8) + (_HIGH[:, None] == codes)
    lanes: npt.NDArray[np.uint64] = counts.view(np.uint64).reshape(-1)
    return lanes


_CANDIDATES = _candidates()
_COUNT = (_counters(0), _counters(8))
# Histogram -> <2v,q> and <q,q> of every candidate, float32 [16, C] each.
_DOTS = np.ascontiguousarray((2 * VALUES * _CANDIDATES).T, np.float32)
_SQUARES = np.ascontiguousarray((_CANDIDATES**2).T, np.float32)
# candidate * 256 + byte -> the byte of its two int4 codes, uint8 [C * 256].
_RECODE = (_CANDIDATES[:, _LOW] + 8 | (_CANDIDATES[:, _HIGH] + 8) << 4).astype(np.uint8).reshape(-1)
# OpenBLAS spreads a product over its own threads from 2^18 multiplications on. For ones this thin
# that costs up to 200 times their work when the cores are busy, as under a pool of threads.
_PRODUCT_ROWS = 2**18 // _DOTS.size - 1


def _search(code: UInt8) -> tuple[npt.NDArray[np.uint16], Float32]:
    """Best candidate uint16 [blocks] and its scale over 2^(s-127), of code bytes [blocks, 8|16].

    For codes q the best scale is <v,q>/<q,q> and it leaves the squared error <v,v> - <v,q>^2/<q,q>.
    Both products are sums over the histogram; as small integers they are exact in float32, so the
    choice does not depend on the order in which a BLAS adds.
    """
    columns = np.ascontiguousarray(code.T)
    counts = np.empty((len(code), 2), np.uint64)
    for half, table in enumerate(_COUNT):
        np.add.reduce(np.take(table, columns, mode="clip"), axis=0, out=counts[:, half])
    histogram = counts.view(np.uint8).astype(np.float32)  # [blocks, 16]
    dots = np.empty((len(code), len(_CANDIDATES)), np.float32)
    squares = np.empty_like(dots)
    for start in range(0, len(code), _PRODUCT_ROWS):
        part = slice(start, start + _PRODUCT_ROWS)
        np.matmul(histogram[part], _DOTS, out=dots[part])
        np.matmul(histogram[part], _SQUARES, out=squares[part])
    gain = dots * dots
    with np.errstate(invalid="ignore"):  # 0/0 where a block is all zeros; any choice serves it
        gain /= squares
    choice = gain.argmax(axis=1)
    row = np.arange(len(code))
    relative = dots[row, choice] / np.maximum(squares[row, choice], np.float32(1))
    return choice.astype(np.uint16), relative * np.float32(0.5)
