"""The expert weights of a layer as files hold them: packed, one tensor, or a tensor an expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.export.checkpoint import MXFP4_BLOCK, PROJECTIONS, Checkpoint
from gptoss_onnx.export.safetensors_folder import TensorView
from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.weights import as_float32
from gptoss_onnx.runtimes.errors import UserError

ALWAYS_FINITE = 252  # the largest scale: 6 * 2^(253 - 127) is beyond float32, and 255 is NaN


@dataclass(frozen=True)
class Mxfp4Experts:
    """One projection of all experts of a layer, packed: value = E2M1[code] * 2^(scale - 127)."""

    blocks: TensorView  # U8 [E, N, K/32, 16], two codes to a byte, the low nibble first
    scales: TensorView  # U8 [E, N, K/32]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, K): experts, output features, input features."""
        experts, rows, groups = self.scales.shape
        return experts, rows, groups * MXFP4_BLOCK

    def read(self, expert: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Blocks [N, K/32, 16] and scales [N, K/32] of one expert, as stored.

        UserError where they make no finite number.
        """
        blocks = self.blocks.read(expert, expert + 1)[0]
        scales = self.scales.read(expert, expert + 1)[0]
        for row in np.flatnonzero((scales > ALWAYS_FINITE).any(1)):
            try:
                mxfp4.decode(blocks[row : row + 1], scales[row : row + 1])
            except ValueError as error:
                raise UserError(
                    f"{self.scales.file}: {self.scales.name} has a scale of {scales[row].max()} in "
                    f"expert {expert}, row {row}, which makes NaN or infinity; get a sound "
                    "checkpoint"
                ) from error
        return blocks, scales

    def check(self) -> None:
        """`read`'s UserError for all experts; reads the blocks of those alone that may need it."""
        for expert in range(self.shape[0]):
            if self.scales.read(expert, expert + 1).max(initial=0) > ALWAYS_FINITE:
                self.read(expert)


def check_packed(checkpoint: Checkpoint) -> None:
    """UserError where packed experts, of which scales are read alone, make no finite number."""
    for layer in range(checkpoint.spec.num_layers):
        for which in PROJECTIONS:
            experts = checkpoint.expert_weight(layer, which)
            if isinstance(experts, Mxfp4Experts):
                experts.check()


@dataclass(frozen=True)
class DenseExperts:
    """One projection of all experts of a layer, in floats and transposed on disk."""

    view: TensorView  # [E, K, N]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, K): experts, output features, input features."""
        experts, columns, rows = self.view.shape
        return experts, rows, columns

    def read(self, expert: int) -> NDArray[np.float32]:
        """The weight of one expert, float32 [N, K], contiguous."""
        stored = self.view.read(expert, expert + 1)[0]  # [K, N]
        return np.ascontiguousarray(stored.T, np.float32)


@dataclass(frozen=True)
class ExpertPart:
    """What a file holds of one expert: a tensor, or item `index` of one."""

    view: TensorView
    index: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape if self.index is None else self.view.shape[1:]

    def read(self) -> NDArray[np.float32]:
        if self.index is None:
            return as_float32(self.view.read())
        return as_float32(self.view.read(self.index, self.index + 1)[0])


@dataclass(frozen=True)
class _Unfused:
    """A tensor an expert; two parts of one are gate and up, whose rows take turns."""

    name: str  # of the one tensor that they are as published
    experts: tuple[tuple[ExpertPart, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        parts = self.experts[0]
        return len(self.experts), len(parts) * parts[0].shape[0], *parts[0].shape[1:]

    @property
    def dtype(self) -> str:
        return self.experts[0][0].view.dtype

    @property
    def views(self) -> list[TensorView]:
        """Every stored tensor of it, once."""
        return list({p.view.name: p.view for parts in self.experts for p in parts}.values())

    @property
    def nbytes(self) -> int:
        return sum(view.nbytes for view in self.views)

    def _read(self, expert: int) -> NDArray[np.float32]:
        parts = [part.read() for part in self.experts[expert]]
        if len(parts) == 1:
            return parts[0]
        joined = np.empty((2 * len(parts[0]), *parts[0].shape[1:]), np.float32)
        joined[0::2], joined[1::2] = parts
        return joined


@dataclass(frozen=True)
class UnfusedExperts(_Unfused):
    """One projection of all experts of a layer, (E, N, K)."""

    def read(self, expert: int) -> NDArray[np.float32]:
        """The weight of one expert, float32 [N, K], contiguous."""
        return np.ascontiguousarray(self._read(expert))

    @property
    def shape(self) -> tuple[int, int, int]:
        experts, rows, columns = super().shape
        return experts, rows, columns


@dataclass(frozen=True)
class UnfusedBias(_Unfused):
    """The bias of all experts of a layer, (E, N)."""

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop), float32."""
        chosen: Sequence[int] = range(len(self.experts))[start:stop]
        rows = [self._read(expert) for expert in chosen]
        return np.stack(rows) if rows else np.empty((0, *self.shape[1:]), np.float32)
