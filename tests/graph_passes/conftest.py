"""A tiny traced graph with its weights bound, the test's own, and what it computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.export.trace import trace

LAYERS = 3  # two of them sliding, one full
WINDOW = 16
# Three layers of five dot products over 128: sqrt(3 * 5 * 128) eps, see tests/parity.
TOLERANCE = 44 * float(np.finfo(np.float32).eps)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("passes") / "tiny"
    return open_checkpoint(synthesize(folder, geometry="tiny", layers=LAYERS))


@pytest.fixture(scope="session")
def spec(checkpoint: Checkpoint) -> GptOssSpec:
    return checkpoint.spec


@pytest.fixture(scope="session")
def traced(spec: GptOssSpec) -> ir.Model:
    return trace(spec)


@pytest.fixture
def model(checkpoint: Checkpoint, traced: ir.Model) -> ir.Model:
    """The portable graph, bound."""
    copy = traced.clone()
    bind(copy, checkpoint)
    return copy


@pytest.fixture(scope="session")
def oracle(checkpoint: Checkpoint, traced: ir.Model) -> list[NDArray[np.float32]]:
    """What the portable graph computes from `computed`'s inputs."""
    copy = traced.clone()
    bind(copy, checkpoint)
    return computed(copy)


def computed(model: ir.Model) -> list[NDArray[np.float32]]:
    """All outputs of a model whose caches hold everything: 5 new tokens after 24, two rows."""
    rng = np.random.default_rng(3)
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(
            value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name
        )
    model.opset_imports["com.microsoft"] = 1
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {
        "input_ids": rng.integers(0, 512, (2, 5)),
        "attention_mask": np.ones((2, 29), np.int64),
    }
    for value in session.get_inputs()[2:]:
        shape = (2, value.shape[1], 24, value.shape[3])
        feeds[value.name] = rng.standard_normal(shape, np.float32)
    return session.run(None, feeds)


def difference(ours: list[NDArray[np.float32]], theirs: list[NDArray[np.float32]]) -> float:
    """The largest |difference| of any output, as a share of its largest value."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def nodes(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op]
