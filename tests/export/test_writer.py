"""Data files: every byte of every weight once, aligned, in the order of use, hashed, in shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.plan import Options, plan
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.export.writer import EMBEDDED_BYTES, DataWriter
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.weights import Part, StreamedTensor
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.target import get_target

NAME = "model.onnx.data"
# What mapping a file needs on Windows, the coarsest system, and what vector loads need anywhere.
PAGE, CACHE_LINE = 1 << 16, 64
Planned = Callable[[], ir.Model]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """The target graph with its weights as planned: writing binds it to what was written."""
    folder = tmp_path_factory.mktemp("writer") / "tiny"
    checkpoint = open_checkpoint(str(synthesize(folder, geometry="tiny", layers=1)))
    options = Options(get_target("cpu"), Quantization.parse("int4", ()))
    model = plan(checkpoint, options).model
    originals = weights(model)

    def restored() -> ir.Model:
        for name, tensor in originals.items():
            model.graph.initializers[name].const_value = tensor
        return model

    return restored


def weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def stored(model: ir.Model) -> list[ir.ExternalTensor]:
    """External tensors in the order in which nodes read them."""
    read = (value for node in model.graph for value in node.inputs if value is not None)
    found = {value.name: value.const_value for value in read if value.is_initializer()}
    return [tensor for tensor in found.values() if isinstance(tensor, ir.ExternalTensor)]


def test_every_weight_is_there_aligned_and_in_order_of_use(
    planned: Planned, tmp_path: Path
) -> None:
    model, counts = planned(), list[int]()
    expected = {name: tensor.numpy() for name, tensor in weights(model).items()}
    writer = DataWriter(tmp_path, NAME, progress=counts.append)
    writer.write(model.graph)
    tensors = stored(model)
    placed = {t.name for t in tensors}
    embedded = {name: t for name, t in weights(model).items() if name not in placed}
    assert not any(isinstance(t, ir.ExternalTensor) for t in embedded.values())
    assert {t.name for t in tensors} | set(embedded) == set(expected)
    for name, tensor in weights(model).items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name], strict=True)
    assert all(t.nbytes < EMBEDDED_BYTES for t in embedded.values())
    assert all(t.nbytes >= EMBEDDED_BYTES for t in tensors)
    assert {t.nbytes >= PAGE for t in tensors} == {True, False}  # both alignments occur
    assert all(t.offset % (PAGE if t.nbytes >= PAGE else CACHE_LINE) == 0 for t in tensors)
    assert all(a.offset + a.length <= b.offset < a.offset + a.length + PAGE
               for a, b in pairwise(tensors))  # fmt: skip
    data = (tmp_path / NAME).read_bytes()
    assert len(data) == tensors[-1].offset + tensors[-1].length
    assert sum(counts) == sum(t.nbytes for t in tensors)
    assert writer.sha256 == {NAME: hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("limit", [PAGE, 3 * PAGE + 100])
def test_shards_hold_at_most_so_many_bytes(limit: int, planned: Planned, tmp_path: Path) -> None:
    model = planned()
    expected = {name: tensor.numpy() for name, tensor in weights(model).items()}
    writer = DataWriter(tmp_path, NAME, max_bytes=limit)
    writer.write(model.graph)
    tensors = stored(model)
    files = list(dict.fromkeys(t.location for t in tensors))
    assert files == [NAME, *(f"{NAME}.{i}" for i in range(1, len(files)))]
    assert len(files) > 1
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    for file in files:
        data = (tmp_path / file).read_bytes()
        assert writer.sha256[file] == hashlib.sha256(data).hexdigest()
        inside = [t for t in tensors if t.location == file]
        assert len(data) <= max(limit, inside[0].nbytes)  # one tensor is never split
    for name, tensor in weights(model).items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name], strict=True)


def test_padding_counts_towards_a_shard(planned: Planned, tmp_path: Path) -> None:
    model = planned()
    DataWriter(tmp_path, NAME).write(model.graph)
    pairs = pairwise(stored(model))
    limit = next(a.offset + a.length + b.length for a, b in pairs if a.offset + a.length < b.offset)
    DataWriter(tmp_path, NAME, max_bytes=limit).write(planned().graph)
    assert (tmp_path / NAME).stat().st_size <= limit


def test_each_weight_is_read_once(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reads = planned(), list[str]()
    for name, tensor in weights(model).items():
        if isinstance(tensor, StreamedTensor):
            chunks = tensor.chunks

            def counted(name: str = name, chunks: Callable = chunks) -> object:
                reads.append(name)
                return chunks()

            monkeypatch.setattr(tensor, "chunks", counted)
    DataWriter(tmp_path, NAME).write(model.graph)
    assert len(reads) == len(set(reads)) > 10


def test_a_full_disk_is_said_in_one_line(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which a device refuses
    (tmp_path / NAME).symlink_to("/dev/full")  # every write to it is ENOSPC
    with pytest.raises(UserError, match="No space left on device"):
        DataWriter(tmp_path, NAME).write(planned().graph)


def test_a_stream_that_ends_early_is_an_error(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = planned()
    streams = (t for t in weights(model).values() if isinstance(t, StreamedTensor))
    tensor = next(t for t in streams if t.nbytes >= EMBEDDED_BYTES)
    monkeypatch.setattr(tensor, "chunks", lambda: iter([np.zeros(3, np.uint8)]))
    with pytest.raises(AssertionError, match=f"{tensor.name}: 3 of"):
        DataWriter(tmp_path, NAME).write(model.graph)


def test_parts_lie_in_their_whole_which_is_written_once(tmp_path: Path) -> None:
    """In branches too: that is where they are read."""
    array = np.random.default_rng(0).standard_normal((3, 16, 32), np.float32)
    whole = StreamedTensor(lambda: iter(array), ir.DataType.FLOAT, array.shape)
    parts = [ir.Value(name=f"part.{i}", const_value=Part(whole, i, (32, 16))) for i in range(3)]
    branches = [
        ir.Graph([], node.outputs, nodes=[node])
        for node in (ir.node("Identity", [parts[1]]), ir.node("Add", [parts[0], parts[2]]))
    ]
    chosen = ir.Value(name="chosen")
    names = dict(zip(("then_branch", "else_branch"), branches, strict=True))
    choice = ir.node("If", [chosen], names)
    graph = ir.Graph([chosen], choice.outputs, nodes=[choice], initializers=parts)
    counts = list[int]()
    DataWriter(tmp_path, NAME, progress=counts.append).write(graph)
    for index, part in enumerate(parts):
        tensor = part.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert (tensor.location, tensor.offset) == (NAME, index * array[0].nbytes)
        np.testing.assert_array_equal(tensor.numpy(), array[index].reshape(32, 16))
    assert (tmp_path / NAME).stat().st_size == sum(counts) == array.nbytes
