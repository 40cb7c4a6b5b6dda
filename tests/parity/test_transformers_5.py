"""The portable graph and packages against transformers 5, and what only that version reads."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from gptoss_onnx.export.plan import Options, plan
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.target import get_target, load_targets
from tests.parity.conftest import GEOMETRIES, SWIGLU, Maker
from tests.parity.reference import Subject, altered
from tests.parity.test_parity import CLEAR, FLOAT_BUT_EXPERTS, int8_tolerance

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_portable_graph_is_transformers_5_too(make: Maker, name: str) -> None:
    subject = make(name).against(5)
    assert subject.error(subject.portable) <= subject.tolerance


@pytest.mark.parametrize("preset", ["portable", "fp32", "mxfp4", "int8"])
def test_swiglu_gain_and_limit_are_the_configs(other_swiglu: Subject, preset: str) -> None:
    subject, windows = other_swiglu, other_swiglu.package_windows
    if preset == "portable":
        assert subject.error(subject.portable) <= subject.tolerance
        return
    graph = subject.package(preset, *(FLOAT_BUT_EXPERTS if preset != "fp32" else ()))
    bound = int8_tolerance(subject) if preset == "int8" else subject.tolerance
    assert subject.error(graph, windows) <= bound


@pytest.mark.parametrize("name", SWIGLU)
def test_canary_a_gain_or_limit_as_published(
    other_swiglu: Subject, tmp_path: Path, name: str
) -> None:
    published = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}

    def change(model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "MoE":
                node.attributes[name] = ir.AttrFloat32(name, published[name])

    graph = altered(other_swiglu, tmp_path / "canary.onnx", change)
    assert other_swiglu.error(graph) > CLEAR * other_swiglu.tolerance


@pytest.mark.parametrize("name", load_targets())
def test_every_target_is_told_the_gain_and_limit(other_swiglu: Subject, name: str) -> None:
    """In a kernel's attributes or in the operators that experts are made of."""
    target = get_target(name)
    made = plan(other_swiglu.checkpoint, Options(target, Quantization.parse("int4", ())))
    for graph in made.graphs:
        nodes = [node for part in graph.model.graphs() for node in part]
        gains = {
            round(node.attributes.get_float(key), 6)
            for node in nodes
            for key in ("activation_alpha", "alpha")
            if node.op_type in ("QMoE", "MoE", "QuickGelu") and key in node.attributes
        }
        assert gains == {SWIGLU["swiglu_alpha"]}
        kernels = [node for node in nodes if node.op_type in ("QMoE", "MoE")]
        limits = {round(node.attributes.get_float("swiglu_limit"), 6) for node in kernels}
        assert limits <= {SWIGLU["swiglu_limit"]}
