"""GPTQ for symmetric 4-bit blocks, a few rows or a whole matrix at a time.

Columns are rounded in order; what rounding one adds to the layer's output is made up for in those
not rounded yet, by least squares over the calibration inputs.
"""

from __future__ import annotations

from threading import Lock

import numpy as np

from gptoss_onnx.graph_passes.blockwise import Float32, UInt8, pack4, quantize_blocks

DAMPING = 0.01  # of the mean diagonal: correlations seen by chance must not be trusted
BITS = 4


class Gptq:
    """Rounds rows of a weight whose inputs have the Gram matrix `gram` [K, K].

    The factor is computed when the first rows come, and serves all of them.
    """

    def __init__(self, gram: Float32, block: int) -> None:
        self._gram, self._block = gram, block
        self._lock = Lock()  # rows come on several threads
        self._factors: tuple[Float32, Float32] | None = None

    def _factor(self) -> tuple[Float32, Float32]:
        with self._lock:
            if self._factors is None:
                self._factors = self._factored()
            return self._factors

    def _factored(self) -> tuple[Float32, Float32]:
        """Upper Cholesky factor of the damped inverse [K, K]; importance of each column [K]."""
        gram = self._gram.astype(np.float64)
        diagonal = gram.diagonal().copy()
        mean = diagonal.mean() or 1.0
        gram[np.diag_indices_from(gram)] += DAMPING * mean
        inverse = np.linalg.inv(gram)
        upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
        return upper.astype(np.float32), (diagonal + DAMPING * mean).astype(np.float32)

    def __call__(self, weight: Float32) -> tuple[UInt8, Float32]:
        """Packed codes and scales of rows [n, K], as `quantize_blocks` gives them."""
        upper, importance = self._factor()
        rows, columns = weight.shape
        block = self._block
        left = np.array(weight, np.float32).T.copy()  # [K, n]: a column is contiguous
        groups = -(-columns // block)
        codes = np.full((groups * block, rows), 8, np.uint8)  # a last partial block ends in zeros
        scales = np.empty((rows, groups), np.float32)
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            part = slice(start, stop)
            _, scale = quantize_blocks(left[part].T, BITS, block, importance[part])
            scale = scale[:, 0]
            step = np.where(scale == 0, np.float32(1), scale)
            errors = np.empty((stop - start, rows), np.float32)
            for column in range(start, stop):
                code = np.clip(np.rint(left[column] / step), -8, 7)
                codes[column] = code + 8
                error = (left[column] - code * scale) / upper[column, column]
                rest = slice(column + 1, stop)
                left[rest] -= upper[column, rest, None] * error
                errors[column - start] = error
            scales[:, start // block] = scale
            left[stop:] -= upper[part, stop:].T @ errors
        return pack4(codes.T), scales
