"""A graph's logits of every token and its router logits: packages and portable graphs alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_onnx.evaluation.graph_runner import GraphRunner, open_model
from gptoss_onnx.evaluation.package_graph import load_graph, load_portable
from gptoss_onnx.evaluation.verify import cpu_stands_in
from gptoss_onnx.export.plan import GRAPH
from gptoss_onnx.graph_passes.weight_role import known_role
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.ort_file import ORT
from gptoss_onnx.runtimes.package import Package

Float = NDArray[np.float32]
ROUTER = "probe.router."
CHUNK = 128  # tokens


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` onward: logits float32 [n, V] and router logits float32 [L, n, E]."""

    start: int
    logits: Float
    routers: Float


class Probe:
    """Runs one sequence at a time, from an empty cache, in chunks."""

    def __init__(self, runner: GraphRunner, chunk: int = CHUNK) -> None:
        self._runner, self._chunk = runner, chunk

    @classmethod
    def of_package(cls, folder: Path, threads: int | None = None) -> Probe:
        """A package as it stands, whichever logits it was exported to give."""
        manifest = Package.open(folder).manifest
        if manifest.graph.endswith(ORT):
            raise UserError(
                f"{folder}: {manifest.graph} is ONNX Runtime's own format, which nothing can be "
                "added to; evaluate the same export for two targets, whose graphs stay .onnx"
            )
        if not cpu_stands_in(manifest):
            raise UserError(
                f"{folder}: evaluation runs on the CPU, which has no kernels for "
                f"{manifest.quant} in {manifest.activations} as {manifest.target} stores it"
            )
        windows = [layer.kept for layer in manifest.kv.layers]
        settings = manifest.session.get("config", {})
        model = load_graph(folder, manifest.graph)
        return cls._open(model, folder, windows, threads, settings)

    @classmethod
    def of_portable(cls, folder: Path, threads: int | None = None) -> Probe:
        """The portable graph that `export_portable` wrote to `folder`."""
        return cls._open(load_portable(folder / GRAPH), folder, None, threads, {})

    @classmethod
    def _open(
        cls,
        model: ir.Model,
        weights: Path,
        windows: Sequence[int | None] | None,
        threads: int | None,
        settings: dict[str, str],
    ) -> Probe:
        session = open_model(probed(model), weights, threads or 0, settings)
        return cls(GraphRunner(session, windows))

    def run(self, ids: Sequence[int], chunk: int | None = None) -> Iterator[Chunk]:
        """Feed `ids`; one chunk's logits are in memory at a time."""
        self._runner.reset()
        chunk = chunk or self._chunk
        array = np.array([ids], np.int64)
        for start in range(0, len(ids), chunk):
            logits = self._runner.feed(array[:, start : start + chunk])
            routers = [v.reshape(logits.shape[1], -1) for v in self._runner.extra]
            yield Chunk(start, logits[0], np.stack(routers))


def probed(model: ir.Model) -> ir.Model:
    """`model`, as loaded, with all tokens' logits and each layer's router logits as outputs."""
    graph = model.graph
    for node in list(graph):
        if node.outputs[0].name == "last_token.hidden":  # graph_passes.last_token_logits
            hidden = node.inputs[0]
            assert hidden is not None
            node.outputs[0].replace_all_uses_with(hidden)
            graph.remove(node, safe=True)
    logits = graph.outputs[0]
    assert logits.shape is not None
    last = logits.producer()
    before = last.inputs[0] if last is not None and last.op_type == "Cast" else None
    for value in filter(None, (before, logits)):  # half-precision graphs cast their logits
        value.shape = ir.Shape([logits.shape[0], None, logits.shape[2]])
    roles = {known_role(value): value for value in graph.initializers.values()}
    biases = {r.layer: v for r, v in roles.items() if r and r.group == "router" and r.is_bias}
    for layer in range(len(biases)):
        (add,) = biases[layer].consumers()
        if add.op_type == "Cast":  # of a weight that a float32 graph shares
            (add,) = add.outputs[0].consumers()
        value = ir.Value(name=f"{ROUTER}{layer}", type=ir.TensorType(ir.DataType.FLOAT))
        value.shape = ir.Shape([None] * len(add.outputs[0].shape or (0, 0, 0)))
        to = {"to": ir.DataType.FLOAT.value}
        graph.insert_after(add, ir.node("Cast", [add.outputs[0]], to, outputs=[value]))
        graph.outputs.append(value)
    return model
