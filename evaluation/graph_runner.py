"""A graph fed step by step with plain arrays: slow and obvious, for comparing graphs.

Works for the portable graph and for packages alike; applications use `runtimes.session`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Float = NDArray[np.float32]


class GraphRunner:
    """One batch's state over a graph; `windows` has the KV rows of a windowed layer, else None."""

    def __init__(
        self, graph: Path, windows: Sequence[int | None], batch: int = 1, threads: int = 0
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        self._windows = tuple(windows)
        self.reset(batch)

    def reset(self, batch: int = 1) -> None:
        """Forget everything fed so far."""
        self._mask = np.zeros((batch, 0), np.int64)
        self._past: dict[str, Float] = {}
        for value in self.session.get_inputs()[2:]:
            window = self._windows[int(value.name.split(".")[1])]
            shape = (batch, value.shape[1], window or 0, value.shape[3])
            self._past[value.name] = np.zeros(shape, np.float32)

    def feed(self, ids: NDArray[np.int64], mask: NDArray[np.int64] | None = None) -> Float:
        """Logits [B, S or 1, V] of the next slots; `mask` is 0 on right padding."""
        new = np.ones_like(ids) if mask is None else mask
        self._mask = np.concatenate([self._mask, new], axis=1)
        names = [value.name for value in self.session.get_outputs()]
        feeds = {"input_ids": ids, "attention_mask": self._mask, **self._past}
        logits, *present = self.session.run(names, feeds)
        for name, value in zip(names[1:], present, strict=True):
            self._past[name.replace("present", "past_key_values")] = value
        return np.asarray(logits)
