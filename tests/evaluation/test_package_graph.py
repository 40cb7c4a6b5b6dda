"""A stranger's graph, read without ONNX Runtime: no file outside the package is its weights'."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from gptoss_onnx.evaluation.inspect import describe
from gptoss_onnx.evaluation.package_graph import load_graph
from gptoss_onnx.evaluation.probe import Probe
from gptoss_onnx.evaluation.verify import verify
from gptoss_onnx.graph_passes.weight_role import WeightRole, known_role
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package import Package
from tests.conftest import DemoPackage, seal


@pytest.fixture
def copy(demo_package: DemoPackage, tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    return Path(shutil.copytree(demo_package("int4"), tmp_path / "copy"))


@pytest.mark.parametrize("absolute", [False, True])
def test_weights_outside_are_refused(copy: Path, tmp_path: Path, absolute: bool) -> None:
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    weight = next(w for w in model.graph.initializer if w.external_data)
    (location,) = (entry for entry in weight.external_data if entry.key == "location")
    location.value = str(tmp_path / "secret") if absolute else "../secret"
    onnx.save(model, copy / "model.onnx")
    seal(copy)
    for act in (
        load_graph,
        lambda folder, _: describe(str(folder)),
        lambda f, _: Probe.of_package(f),
    ):
        with pytest.raises(UserError, match=r"secret.* not among the files") as raised:
            act(copy, "model.onnx")
        assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(UserError, match="not among the files"):
        verify(copy, lambda count: None)
    with pytest.raises(UserError, match=r"ONNX Runtime cannot load the graph: .*xternal"):
        _ = Package.open(copy).graph  # it refuses by itself


def test_files_keep_no_roles_and_loading_gives_them(copy: Path) -> None:
    plain = ir.load(copy / "model.onnx").graph
    assert not any(known_role(value) for value in plain.initializers.values())
    graph = load_graph(copy, "model.onnx").graph
    layers = range(len(graph.inputs[2:]) // 2)
    kv = [WeightRole(n, "kv", part) for n in layers for part in ("key", "value")]
    assert [known_role(value) for value in graph.inputs[2:]] == kv
    roles = [known_role(value) for value in graph.initializers.values()]
    for n in layers:
        assert roles.count(WeightRole(n, "router", "weight", is_bias=True)) == 1


def test_what_is_no_graph_is_one_line(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"\x08no graph")
    seal(copy)
    with pytest.raises(UserError, match="cannot be read as a graph") as raised:
        verify(copy, lambda count: None)
    assert len(str(raised.value).splitlines()) == 1


def test_a_target_of_a_later_release(copy: Path) -> None:
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"target": "cpu"', '"target": "cpu_next"'))
    assert verify(copy, lambda count: None) == []
    assert Package.open(copy).manifest.target == "cpu_next"
