"""Caches that are not float32 in NumPy memory: other element types, a device's, one handed on.

There is no GPU here, so the CPU stands in as a device: memory that ONNX Runtime allocates and that
only copies reach, by the code that runs on CUDA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from gptoss_onnx.runtimes import kv_cache
from gptoss_onnx.runtimes.batch import FIRST_CAPACITY, Batch
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.kv_cache import AppendedCache, DeviceBuffer, KvBuffer, make_buffer
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session
from tests.runtimes.conftest import TinyModel, write_package

Prompt = Callable[..., list[int]]
# Of logits of standard deviation 3, as in test_session, where leaving a key out moves some by more
# than 1. float16's rounding, 8192 times float32's, reached 0.04 here.
TOLERANCE = {"float32": 1e-3, "float16": 0.1}


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "DEVICES", {"CPUExecutionProvider": "cpu"})


@pytest.fixture(scope="session")
def half_package(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> Package:
    folder = tmp_path_factory.mktemp("packages") / "half"
    return Package.open(write_package(folder, model, kv_dtype="float16"))


@pytest.fixture(params=["float32", "float16"])
def any_dtype(request: pytest.FixtureRequest, package: Package, half_package: Package) -> Package:
    return half_package if request.param == "float16" else package


def close(ours: np.ndarray, wanted: np.ndarray, package: Package) -> bool:
    return float(np.abs(ours - wanted).max()) < TOLERANCE[package.manifest.kv.dtype]


def test_float16_in_numpy_memory(half_package: Package, model: TinyModel, prompt: Prompt) -> None:
    ids = prompt(FIRST_CAPACITY + 30)
    session = Session(half_package)
    assert session.batch._buffers[0].array.dtype == np.float16
    session.feed(ids[:200])
    logits = session.feed(ids[200:])  # grown
    assert logits.dtype == np.float32
    assert close(logits, model.logits(ids)[-1], half_package)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_a_device_gives_the_same(
    any_dtype: Package, model: TinyModel, prompt: Prompt, chunk: int
) -> None:
    """Window, growth and all: the buffers start at 256 tokens and move once."""
    ids = prompt(300)
    session = Session(any_dtype)
    assert {type(buffer) for buffer in session.batch._buffers} == {DeviceBuffer}
    for start in range(0, 300, chunk):
        logits = session.feed(ids[start : start + chunk])
    assert session.batch._buffers[2].capacity == 2 * FIRST_CAPACITY
    assert close(logits, model.logits(ids)[-1], any_dtype)


@pytest.mark.usefixtures("on_device")
def test_nothing_moves_between_steps(any_dtype: Package, prompt: Prompt) -> None:
    session = Session(any_dtype, max_length=200)
    session.feed(prompt(20))
    addresses = [buffer.value.data_ptr() for buffer in session.batch._buffers]
    for token in prompt(100):
        session.feed([token])
        assert [buffer.value.data_ptr() for buffer in session.batch._buffers] == addresses
    written = {value.data_ptr() for value in session.batch._bound[0, 1].binding.get_outputs()}
    assert written == {*addresses, session.batch._logits.ctypes.data}


@pytest.mark.usefixtures("on_device")
def test_canary_lost_keys_show(any_dtype: Package, model: TinyModel, prompt: Prompt) -> None:
    ids = prompt(40)
    session = Session(any_dtype)
    session.feed(ids)
    full = session.batch._buffers[2]  # keys of the layer without a window
    rows = full.read(0, 0, 40)
    rows[:, :20] = 0
    full.write(0, 0, rows)
    logits = session.feed([5])
    assert np.abs(logits - model.logits([*ids, 5])[-1]).max() > 2 * TOLERANCE["float16"]


@pytest.mark.usefixtures("on_device")
def test_a_device_rewinds_to_a_snapshot(
    any_dtype: Package, model: TinyModel, prompt: Prompt
) -> None:
    ids, other = prompt(150), prompt(20, seed=3)
    session = Session(any_dtype)
    session.feed(ids[:100])
    session.snapshot()
    session.feed(ids[100:])
    assert session.rewind(120) == 100
    logits = session.feed(other)
    assert close(logits, model.logits([*ids[:100], *other])[-1], any_dtype)


@pytest.mark.parametrize("dtype", kv_cache.KV_DTYPES)
@pytest.mark.parametrize("kind", [KvBuffer, DeviceBuffer])
def test_bytes_survive_growth_and_restoring(kind: type[KvBuffer], dtype: str) -> None:
    """Every element type, bfloat16 with them, which NumPy does not have."""
    shape = (2, 2, 4, 8)
    more = ("cpu",) if kind is DeviceBuffer else ()
    buffer = kind("past", "present", shape, 4, dtype, *more)
    stored = np.zeros(shape, np.int8 if dtype == "int8" else np.uint16).dtype
    size = 2 if "16" in dtype else 4 if dtype == "float32" else 1
    rows = np.random.default_rng(0).integers(0, 100, (2, 3, 8 * size), np.uint8)
    rows = rows.view({"float32": np.float32, "float16": np.float16}.get(dtype, stored))
    buffer.write(1, 1, rows)
    buffer.copy(1, 0, 4)
    buffer.grow(9, 4)
    assert buffer.capacity == 9
    for row in (0, 1):
        read = buffer.read(row, 1, 4)
        np.testing.assert_array_equal(read.view(np.uint8), rows.view(np.uint8))
        assert not buffer.read(row, 4, 9).any()


@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "WebGpuExecutionProvider"])
def test_providers_that_compute_in_host_memory(provider: str) -> None:
    shape = (1, 1, 4, 4)
    buffer = make_buffer("p", "q", shape, None, dtype="float32", provider=provider, in_place=True)
    assert type(buffer) is KvBuffer


def test_a_type_nobody_has_is_refused(package: Package) -> None:
    kv = dataclasses.replace(package.manifest.kv, dtype="float8")
    odd = Package(package.folder, dataclasses.replace(package.manifest, kv=kv))
    with pytest.raises(UserError, match="a KV cache of float8 is not supported; float32, float16"):
        Session(odd)


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2), ("int8", 1)]
)
def test_bytes_of_a_token(dtype: str, size: int) -> None:
    assert kv_cache.row_bytes(dtype, 8, 64) == 512 * size


HEADS, DIM, VOCAB = 2, 4, 11


def appending_package(package: Package, folder: Path, dtype: str) -> Package:
    """present = Concat(past, ids as rows); logits: what the cache has summed up to."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    past, present = "past_key_values.0.{}", "present.0.{}"
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["id"], to=kind),
        helper.make_node("Unsqueeze", ["id", "axes"], ["rows"]),  # [B, 1, S, 1]
        helper.make_node("Expand", ["rows", "one_row"], ["new"]),  # [B, HEADS, S, DIM]
    ]
    inputs, outputs = [], []
    for name in ("input_ids", "attention_mask"):
        inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["B", name]))
    outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1, VOCAB]))
    for part in ("key", "value"):
        names = past.format(part), present.format(part)
        nodes.append(helper.make_node("Concat", [names[0], "new"], [names[1]], axis=2))
        for name, values, size in zip(names, (inputs, outputs), "PC", strict=True):
            shape = ["B", HEADS, size, DIM]
            values.append(helper.make_tensor_value_info(name, kind, shape))
    nodes += [
        helper.make_node("Cast", ["present.0.key"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "all"], ["sum"], keepdims=0),  # [B]
        helper.make_node("Unsqueeze", ["sum", "columns"], ["column"]),
        helper.make_node("Expand", ["column", "vocab"], ["logits"]),
    ]
    constants = {
        "axes": [1, 3],
        "one_row": [1, HEADS, 1, DIM],
        "all": [1, 2, 3],
        "columns": [1, 2],
        "vocab": [1, 1, VOCAB],
    }
    initializers = [
        onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants.items()
    ]
    graph = helper.make_graph(nodes, "appending", inputs, outputs, initializers)
    folder.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        folder / "model.onnx",
    )
    kv = kv_cache_layout(package, dtype)
    manifest = dataclasses.replace(
        package.manifest, kv=kv, logits="last", vocab_size=VOCAB, padded_batches=True
    )
    return Package(folder, manifest)


def kv_cache_layout(package: Package, dtype: str) -> object:
    layer = dataclasses.replace(package.manifest.kv.layers[0], windowed=False)
    return dataclasses.replace(
        package.manifest.kv,
        dtype=dtype,
        num_kv_heads=HEADS,
        head_dim=DIM,
        layers=(layer,),
        in_place=False,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_cache_handed_from_run_to_run(package: Package, tmp_path: Path, dtype: str) -> None:
    session = Session(appending_package(package, tmp_path / "appending", dtype))
    assert {type(buffer) for buffer in session.batch._buffers} == {AppendedCache}

    def fed(*ids: int) -> float:
        return float(session.feed(ids)[0]) / (HEADS * DIM)

    assert fed(1, 2, 3) == 6
    assert fed(4) == 10
    assert session.batch._buffers[0].value.shape() == [1, HEADS, 4, DIM]
    assert session.rewind(2) == 2  # 1, 2
    assert fed(7) == 10
    assert session.reuse([1, 2, 9, 9]) == 2
    assert fed(5) == 8
    session.reset()
    assert fed(8) == 8
    assert session.length == 1


def test_a_handed_on_cache_and_a_failed_run(package: Package, tmp_path: Path) -> None:
    session = Session(appending_package(package, tmp_path / "appending", "float32"))
    session.feed([3, 4])
    stop = onnxruntime.RunOptions()
    stop.terminate = True
    with pytest.raises(RuntimeError):
        session.feed([6], stop)
    assert session.length == 2
    assert session.feed([6])[0] / (HEADS * DIM) == 13


def test_a_handed_on_cache_is_of_one_sequence(package: Package, tmp_path: Path) -> None:
    appending = appending_package(package, tmp_path / "appending", "float32")
    with pytest.raises(UserError, match="makes its KV cache anew at every run"):
        Batch(appending, 2)
