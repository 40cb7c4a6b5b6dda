"""One pass of the portable graph over a text: what each linear's and each expert's inputs are like.

Second moments of every input channel, and for GPTQ the whole Gram matrices; experts by the tokens
routed to them. Every token counts, the user's too.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_onnx.evaluation.graph_runner import GraphRunner, open_model
from gptoss_onnx.evaluation.package_graph import load_portable
from gptoss_onnx.evaluation.reference import portable_graph
from gptoss_onnx.evaluation.texts import Passage, Text, read_passages
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.package_files import load_harmony
from gptoss_onnx.export.plan import GRAPH
from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.linear import linears
from gptoss_onnx.graph_passes.rounding import Statistics, rounding_name
from gptoss_onnx.graph_passes.weight_role import WeightRole, read_role, role_of
from gptoss_onnx.runtimes.errors import UserError

Float = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
MOST_TOKENS = 1 << 16
_FLUSH = 4096  # tokens whose experts are computed at once: each expert is read once for them
_IN_MEMORY = 1 << 30  # bytes of Gram matrices; more lie in a file
_TAP = "calibration."


@dataclass(frozen=True)
class Calibration:
    statistics: Statistics
    described: dict[str, Any]  # for the manifest


def read_calibration(text: Path | Text, checkpoint: Checkpoint) -> list[Passage]:
    """Passages of a text in the checkpoint's tokens; UserError when there are none."""
    return read_passages(text, load_harmony(checkpoint), checkpoint.spec.max_position_embeddings)


@contextmanager
def calibrated(
    text: Path | Text, checkpoint: Checkpoint, *, grams: bool, progress: Progress
) -> Iterator[Calibration]:
    """Statistics of `checkpoint` over `text`, at most MOST_TOKENS of it.

    They may lie in a temporary file and are there as long as the context is.
    """
    text = text if isinstance(text, Text) else Text.read(text)
    passages = read_calibration(text, checkpoint)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gptoss.")))
        with portable_graph(checkpoint) as portable:
            sums = _Sums(checkpoint, scratch if grams else None)
            tokens = _run(checkpoint, portable, passages, sums, progress)
        described = {
            "text": text.name,
            "sha256": text.sha256,
            "tokens": tokens,
        }
        yield Calibration(sums.statistics(), described)


def _run(
    checkpoint: Checkpoint,
    portable: Path,
    passages: Sequence[Passage],
    sums: _Sums,
    progress: Progress,
) -> int:
    model = load_portable(portable / GRAPH)
    taps = _tap(model)
    runner = GraphRunner(open_model(model, portable))
    total = min(sum(len(passage.ids) for passage in passages), MOST_TOKENS)
    done = 0
    for passage in passages:
        if done >= total:
            break
        runner.reset()
        ids = np.array([passage.ids], np.int64)
        for start in range(0, len(passage.ids), 256):
            chunk = ids[:, start : start + 256]
            runner.feed(chunk)
            for tap, value in zip(taps, runner.extra, strict=True):
                sums.add(tap, value.reshape(-1, value.shape[-1]))
            done += chunk.shape[1]
            progress("calibrating", min(done, total), total)
        sums.add_kv(runner.cache)
    for layer in range(checkpoint.spec.num_layers):
        sums.flush(layer)
    return done


@dataclass(frozen=True)
class _Tap:
    """What goes into a linear or a layer's experts, or its router's logits."""

    role: WeightRole  # of a weight that reads it, gate_up for experts
    what: str = "input"  # or "router"


def _tap(model: ir.Model) -> list[_Tap]:
    """Make inputs of linears and experts outputs; gives what they are, in order."""
    graph = model.graph
    inputs: dict[_Tap, ir.Value] = {}
    for linear in linears(graph):
        role = linear.role
        if role.part == "q" or role.group in ("o", "lm_head"):  # k and v have the input of q
            inputs[_Tap(role)] = linear.x
    for node in graph:
        if node.op_type == "MoE":
            role = role_of(node.inputs[2])
            for what, value in (("input", node.inputs[0]), ("router", node.inputs[1])):
                assert value is not None
                inputs[_Tap(role, what)] = value
    for tap, value in inputs.items():
        name = f"{_TAP}{tap.role.name}.{tap.what}"
        out = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        out.shape = ir.Shape([None] * 3)
        graph.append(ir.node("Identity", [value], outputs=[out]))
        graph.outputs.append(out)
    return list(inputs)


class _Sums:
    """The running sums; experts' inputs wait until there are enough of them."""

    def __init__(self, checkpoint: Checkpoint, scratch: Path | None) -> None:
        self._checkpoint, self._spec, self._scratch = checkpoint, checkpoint.spec, scratch
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._moments: dict[str, Float] = {}
        self._grams: dict[str, Float] = {}
        self._shared: dict[str, Float] = {}
        self._kv: dict[str, Float] = {}
        self._waiting: dict[_Tap, list[Float]] = {}
        self._held = self._mapped = 0
        self._free = shutil.disk_usage(scratch).free if scratch else 0

    def statistics(self) -> Statistics:
        return Statistics(self._counts, self._moments, self._grams, self._shared, self._kv)

    def add(self, tap: _Tap, x: Float) -> None:
        """Rows [n, K] of `tap`."""
        role = tap.role
        if role.group != "experts":
            self._sum(rounding_name(role), None, x)
            return
        self._waiting.setdefault(tap, []).append(x)
        if tap.what == "router" and sum(map(len, self._waiting[tap])) >= _FLUSH:
            assert role.layer is not None
            self.flush(role.layer)

    def add_kv(self, cache: dict[str, Float]) -> None:
        """Largest magnitudes of a sequence's keys and values [1, kv_heads, T, D]."""
        for name, value in cache.items():
            role = read_role(name)
            most = np.abs(value).max(axis=(0, 2))
            key = f"{role.layer}.{role.part}"
            self._kv[key] = np.maximum(self._kv[key], most) if key in self._kv else most

    def flush(self, layer: int) -> None:
        """Send what waits through the layer's experts, one expert in memory at a time."""
        first, second = (WeightRole(layer, "experts", part) for part in ("gate_up", "down"))
        hidden, router = (
            np.concatenate(self._waiting.pop(_Tap(first, what), [np.empty((0, 0), np.float32)]))
            for what in ("input", "router")
        )
        if not len(hidden):
            return
        chosen = np.argsort(-router, axis=-1, kind="stable")[:, : self._spec.experts_per_token]
        gate_up = self._checkpoint.expert_weight(layer, "gate_up_proj")
        bias = self._checkpoint.tensors[replace(first, is_bias=True).name]
        for expert in range(self._spec.num_experts):
            x = hidden[(chosen == expert).any(-1)]
            self._sum(rounding_name(first), expert, x)
            stored = gate_up.read(expert)
            weight = mxfp4.decode(*stored) if isinstance(stored, tuple) else stored
            row = np.asarray(bias.read(expert, expert + 1), np.float32)
            inner = swiglu(x @ np.asarray(weight, np.float32).T + row, self._spec)
            self._sum(rounding_name(second), expert, inner)

    def _sum(self, name: str, expert: int | None, x: Float) -> None:
        lead = () if expert is None else (self._spec.num_experts,)
        width = x.shape[1]
        if name not in self._moments:
            self._counts[name] = np.zeros(lead, np.int64)
            self._moments[name] = np.zeros((*lead, width), np.float32)
            if self._scratch is not None:
                self._grams[name] = self._zeros(name, (*lead, width, width))
                if lead:
                    self._shared[name] = self._zeros(f"{name}.shared", (width, width))
        place = () if expert is None else expert
        self._counts[name][place] += len(x)
        self._moments[name][place] += (x * x).sum(0)
        if self._scratch is not None:
            product = x.T @ x
            self._grams[name][place] += product
            if lead:
                self._shared[name] += product

    def _zeros(self, name: str, shape: tuple[int, ...]) -> Float:
        nbytes = 4 * int(np.prod(shape))
        self._held += nbytes
        if self._held <= _IN_MEMORY:
            return np.zeros(shape, np.float32)
        assert self._scratch is not None
        self._mapped += nbytes
        if self._mapped > self._free:  # a mapped file that finds no room would be a crash
            raise UserError(
                f"{self._scratch.parent}: GPTQ needs more than the {self._free / 1e9:.1f} GB "
                "free there; set TMPDIR to a larger disk, or use --method search"
            )
        return np.memmap(self._scratch / name, np.float32, "w+", shape=shape)


def swiglu(gate_up: Float, spec: Any) -> Float:
    """The experts' inner activation [n, I] of [n, 2I], gate and up in turn (`custom_ops`)."""
    gate = np.minimum(gate_up[:, 0::2], spec.swiglu_limit)
    up = np.clip(gate_up[:, 1::2], -spec.swiglu_limit, spec.swiglu_limit)
    glu = gate / (1 + np.exp(-spec.swiglu_alpha * gate))
    return np.asarray((up + 1) * glu, np.float32)
