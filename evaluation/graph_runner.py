"""A graph fed step by step with plain arrays: slow and obvious, for comparing graphs.

Works for the portable graph and for packages alike; applications use a `Session`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from gptoss_onnx.graph_passes.weight_role import WeightRole, read_role

Float = NDArray[np.float32]
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


def open_session(
    graph: Path | bytes,
    threads: int = 0,
    settings: Mapping[str, str] | None = None,
    weights: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load a graph on the CPU; `weights` is the folder of the data of one given as bytes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # An evaluation runs for minutes: waiting threads must not take the cores of what runs beside.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, str(value))
    if weights is not None:
        name = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(name, str(weights))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def open_model(
    model: ir.Model, weights: Path, threads: int = 0, settings: Mapping[str, str] | None = None
) -> onnxruntime.InferenceSession:
    """Load a graph that was changed in memory over the data files in the folder `weights`."""
    proto = ir.serde.serialize_model(model).SerializeToString()
    return open_session(proto, threads, settings, weights)


class GraphRunner:
    """One batch's state over a graph; `windows` has the KV rows of a windowed layer, else None."""

    def __init__(
        self,
        graph: Path | onnxruntime.InferenceSession,
        windows: Sequence[int | None] | None = None,
        batch: int = 1,
        threads: int = 0,
        store: Callable[[WeightRole, Float], Float] = lambda role, kv: kv,
    ) -> None:
        self._store = store  # what becomes of a KV tensor between two feeds
        self.session = open_session(graph, threads) if isinstance(graph, Path) else graph
        self._inputs = self.session.get_inputs()[2:]
        self._outputs = [value.name for value in self.session.get_outputs()]
        self._kv = {read_role(value.name): value.name for value in self._inputs}
        self._windows = tuple(windows or [None] * (len(self._inputs) // 2))
        self.extra: list[Float] = []  # what the graph gave beside logits and KV, at the last feed
        self.reset(batch)

    def reset(self, batch: int = 1) -> None:
        """Forget everything fed so far."""
        self._mask = np.zeros((batch, 0), np.int64)
        self._past: dict[str, NDArray[Any]] = {}
        for value in self._inputs:
            window = self._windows[read_role(value.name).layer or 0]
            shape = (batch, value.shape[1], window or 0, value.shape[3])
            self._past[value.name] = np.zeros(shape, _DTYPES[value.type])

    @property
    def cache(self) -> dict[str, NDArray[Any]]:
        """KV tensors [B, kv_heads, T, D] by the name of the past they are next."""
        return self._past

    def feed(self, ids: NDArray[np.int64], mask: NDArray[np.int64] | None = None) -> Float:
        """Logits [B, S or 1, V] of the next slots; `mask` is 0 on right padding."""
        new = np.ones_like(ids) if mask is None else mask
        self._mask = np.concatenate([self._mask, new], axis=1)
        feeds = {"input_ids": ids, "attention_mask": self._mask, **self._past}
        logits, *rest = self.session.run(self._outputs, feeds)
        present = len(self._inputs)
        for name, value in zip(self._outputs[1:], rest[:present], strict=False):
            role = read_role(name)  # its past's too
            self._past[self._kv[role]] = self._store(role, value)
        self.extra = rest[present:]
        return np.asarray(logits)
