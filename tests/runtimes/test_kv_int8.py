"""The demo with an int8 KV cache, against its portable graph with keys and values rounded alike.

The portable graph has no kernel and no cache: every key and value is divided by its scale, rounded,
clipped and multiplied again where attention reads it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass

from gptoss_onnx.evaluation.graph_runner import GraphRunner, open_session
from gptoss_onnx.evaluation.texts import read_passages
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export, export_portable
from gptoss_onnx.export.plan import GRAPH, Options
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.batch import FIRST_CAPACITY, Batch
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.target import get_target
from gptoss_onnx.runtimes.tokenizer import Tokenizer
from tests.conftest import DemoPackage

pytestmark = pytest.mark.slow

Float = NDArray[np.float32]
KvMax = dict[str, Float]
LAYERS, WINDOW, LENGTH = 6, 128, 300
assert LENGTH > FIRST_CAPACITY  # full layers grow, windowed ones move on

# As a share of what rounding the cache costs, root mean square over logits. Two float32 graphs
# compute keys and values that differ by sqrt(5 L K) eps = sqrt(5 * 6 * 256) eps = 1e-5 of their
# size (tests/parity/reference.py). Codes are about 32 (the largest, 127, is some four times the
# mean), so one in 127 * 2 * 1e-5 * (32 / 127) = 1 in 1500 rounds to the other neighbour: a whole
# step, where rounding costs 1/12 of a step squared. That adds 12 / 1500 of the noise: sqrt = 0.09.
TOLERANCE = 0.1


@pytest.fixture(scope="module")
def ids(demo: Path) -> list[int]:
    """Held-out conversations one after the other: none that the scales were taken from."""
    return text(demo, "held_out")


def text(demo: Path, name: str) -> list[int]:
    harmony = Harmony(Tokenizer(demo))
    passages = read_passages(demo / f"evaluation/{name}.jsonl", harmony, 4096)
    return [token for passage in passages[::30] for token in passage.ids][:LENGTH]


@dataclass(frozen=True)
class Oracle:
    portable: Path
    kv_max: KvMax

    def logits(self, ids: list[int], *, rounded: bool = True) -> Float:
        """[T, V] of one pass without a cache."""
        model = ir.load(self.portable / GRAPH)
        InlinePass()(model)
        for value in [v for v in model.graph.outputs if str(v.name).startswith("present")]:
            if rounded:
                self._round(model.graph, value)
        proto = ir.serde.serialize_model(model).SerializeToString()
        return GraphRunner(open_session(proto, weights=self.portable)).feed(np.array([ids]))[0]

    def scale(self, layer: str, part: str) -> Float:
        """[kv_heads, D]; keys by the largest that rotary can turn a pair of channels into."""
        most = self.kv_max[f"{layer}.{part}"]
        if part == "key":
            most = np.hypot(most, np.roll(most, most.shape[-1] // 2, axis=-1))
        return np.maximum(most, most.max() / 127) / np.float32(127)

    def _round(self, graph: ir.Graph, value: ir.Value) -> None:
        _, layer, part = str(value.name).split(".")
        given = []
        arrays = (self.scale(layer, part)[None, :, None], np.float32(-128), np.float32(127))
        for name, array in zip(("scale", "lowest", "highest"), arrays, strict=True):
            tensor = ir.Tensor(np.asarray(array), name=f"{value.name}.{name}")
            given.append(ir.Value(name=tensor.name, const_value=tensor, type=value.type))
            graph.register_initializer(given[-1])
        readers = list(value.uses())
        codes = ir.node("Div", [value, given[0]])
        whole = ir.node("Round", codes.outputs)
        kept = ir.node("Clip", [whole.outputs[0], *given[1:]])
        again = ir.node("Mul", [kept.outputs[0], given[0]])
        producer = value.producer()
        assert producer is not None and readers
        graph.insert_after(producer, [codes, whole, kept, again])
        for node, place in readers:
            node.replace_input_with(place, again.outputs[0])


@pytest.fixture(scope="module")
def oracle(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    portable = export_portable(open_checkpoint(demo), tmp_path_factory.mktemp("kv") / "portable")
    runner = GraphRunner(open_session(portable / GRAPH))
    runner.feed(np.array([text(demo, "calibration")]))
    most = {name: np.abs(value).max(axis=(0, 2)) for name, value in runner.cache.items()}
    return Oracle(portable, {k.removeprefix("past_key_values."): v for k, v in most.items()})


@pytest.fixture(scope="module")
def folder(demo: Path, oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("kv") / "fp32-kv-int8"
    made = Options(
        get_target("cpu"),
        Quantization.parse("fp32", ()),
        all_logits=True,
        kv="int8",
        kv_max=oracle.kv_max,
    )
    export(open_checkpoint(demo), made, output, lambda *_: None)
    return output


@pytest.fixture(scope="module")
def package(folder: Path) -> Package:
    return Package.open(folder)


@pytest.fixture(scope="module")
def float_package(demo_package: DemoPackage) -> Package:
    return Package.open(demo_package("fp32"))


@pytest.fixture(scope="module")
def wanted(oracle: Oracle, ids: list[int]) -> Float:
    return oracle.logits(ids)


@pytest.fixture(scope="module")
def cost(oracle: Oracle, ids: list[int], wanted: Float) -> float:
    """What rounding the cache changes logits by."""
    return rms(wanted - oracle.logits(ids, rounded=False))


def rms(x: Float) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


def chunks(count: int) -> Iterable[int]:
    """Prefill past the window in three, then single tokens past the first capacity."""
    return [100, 60, 40] + [1] * (count - 200)


def fed(package: Package, ids: list[int]) -> Float:
    """Logits [T, V] of every token, chunk by chunk."""
    session, found, start = Session(package), [], 0
    for size in chunks(len(ids)):
        session.feed(ids[start : start + size])
        found.append(session.batch._logits_of(1, size)[0].copy())
        start += size
    return np.concatenate(found)


def test_prefill_and_decode_are_the_oracles(
    package: Package, ids: list[int], wanted: Float, cost: float
) -> None:
    found = fed(package, ids)
    for part in (slice(0, 100), slice(100, 200), slice(200, LENGTH)):
        assert rms(found[part] - wanted[part]) < TOLERANCE * cost


def test_int8_costs_what_rounding_costs(
    float_package: Package, package: Package, ids: list[int], cost: float
) -> None:
    """Against the float cache after each chunk: not the same, and not further than it should be."""
    assert float_package.manifest.logits == "last"
    exact, coded = Session(float_package), Session(package)
    difference, start = [], 0
    for size in chunks(len(ids)):
        chunk = ids[start : start + size]
        difference.append(coded.feed(chunk) - exact.feed(chunk))
        start += size
    # These are a third of the tokens whose mean is `cost`, so it is met within a factor.
    assert cost / 4 < rms(np.stack(difference)) < 4 * cost


@pytest.mark.parametrize(
    ("layers", "change"),
    [
        ({0, 1, 2, 3, 4, 5}, "key and value swapped"),
        ({3}, "key and value swapped"),
        ({3}, "zero"),
        ({3}, "ten times"),
        ({2}, "another channel's"),
    ],
)
def test_the_tolerance_can_fail(
    folder: Path,
    tmp_path: Path,
    ids: list[int],
    wanted: Float,
    cost: float,
    layers: set[int],
    change: str,
) -> None:
    spoiled = Path(shutil.copytree(folder, tmp_path / "spoiled", copy_function=os.link))
    spoil(spoiled / GRAPH, layers, change)
    found = fed(Package.open(spoiled), ids)
    assert not rms(found - wanted) < 3 * TOLERANCE * cost  # NaN is wrong too


def spoil(path: Path, layers: set[int], change: str) -> None:
    model = ir.load(path)
    changes: dict[str, Callable[[Float], Float]] = {
        "zero": lambda scale: scale * 0,
        "ten times": lambda scale: scale * 10,
        "another channel's": lambda scale: np.roll(scale, 1, axis=-1),
    }
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == LAYERS
    for layer in layers:
        inputs = list(nodes[layer].inputs[12:14])
        if change == "key and value swapped":
            for place, value in zip((13, 12), inputs, strict=True):
                nodes[layer].replace_input_with(place, value)
            continue
        for value in inputs:
            assert value is not None and value.const_value is not None
            array = changes[change](value.const_value.numpy())
            value.const_value = ir.Tensor(array, name=value.name)
    path.unlink()  # a link to the right one
    ir.save(model, path)


def test_a_padded_batch_is_each_row_alone(
    package: Package, oracle: Oracle, ids: list[int], wanted: Float, cost: float
) -> None:
    rows = [ids[:220], ids[50:220], ids[200:205]]
    alone = [wanted, oracle.logits(rows[1]), oracle.logits(rows[2])]
    prompts = (210, 160, 4)
    batch, seen = Batch(package, 3), [0, 0, 0]
    both = list(zip(rows, prompts, strict=True))
    steps = [[row[at : min(at + 70, n)] for row, n in both] for at in (0, 70, 140)]
    steps += [[row[n + i : n + i + 1] for row, n in both] for i in range(10)]
    for step in steps:
        logits = batch.feed(step)
        for row, tokens in enumerate(step):
            seen[row] += len(tokens)
            if tokens:
                assert rms(logits[row] - alone[row][seen[row] - 1]) < TOLERANCE * cost
    assert seen == [220, 170, 5]


@pytest.mark.parametrize(("target", "reached"), [(200, 150), (140, 140), (0, 0)])
def test_rewinding_to_a_snapshot_and_on(
    package: Package, ids: list[int], target: int, reached: int
) -> None:
    """The very codes and logits of a session that never went further."""
    session, fresh = Session(package, max_length=LENGTH), Session(package, max_length=LENGTH)
    session.feed(ids[:150])
    session.snapshot()
    session.feed(ids[150:280])
    assert session.rewind(target) == reached
    if reached:
        fresh.feed(ids[:150])
        fresh.rewind(reached)  # nothing was evicted yet: the rows are there
    other = ids[5:45]
    assert np.array_equal(session.feed(other), fresh.feed(other))
    length = reached + len(other)
    for mine, theirs in zip(session.batch._buffers, fresh.batch._buffers, strict=True):
        assert mine.array.dtype == np.int8
        rows = length - mine.first_position(length)
        assert np.array_equal(mine.array[:, :, :rows], theirs.array[:, :, :rows])
        assert mine.array[:, :, :rows].any()


def test_buffers_take_a_quarter(package: Package, float_package: Package, ids: list[int]) -> None:
    sessions = [Session(each) for each in (package, float_package)]
    for tokens in (1, LENGTH - 1):  # before and after they grow
        for session in sessions:
            session.feed(ids[:tokens])
        coded, exact = (sum(b.array.nbytes for b in each.batch._buffers) for each in sessions)
        assert 4 * coded == exact
    # 2 heads of 64: windowed layers hold a window and its slack, full ones all of the capacity.
    assert coded == 2 * 2 * 64 * 3 * (WINDOW * 5 // 4 + 2 * FIRST_CAPACITY)
