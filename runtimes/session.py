"""The running state of one sequence: a row of a batch of its own."""

from __future__ import annotations

import threading

from gptoss_onnx.runtimes.batch import Batch
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.row import Row


class Session(Row):
    """A sequence that is fed, rewound, and reuses what it has in common with the next prompt.

    `max_length` as `Batch`'s. Not thread-safe: hold `lock` while you use it.
    """

    def __init__(self, package: Package, *, max_length: int | None = None) -> None:
        batch = Batch(package, max_length=max_length)
        super().__init__(batch, 0)
        batch.rows[0] = self
        self.package = package
        self.max_length = batch.max_length
        self.lock = threading.Lock()

    def reset(self) -> None:
        """Forget everything; the buffers stay."""
        self.rewind(0)
