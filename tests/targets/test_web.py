"""Packages for browsers: two graphs over one set of bytes, answering as the CPU's package does."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import GRAPH, Options, Plan, plan
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.step import PassError
from gptoss_onnx.graph_passes.verify_target import VerifyTarget
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.target import get_target
from tests.conftest import DEMO, DemoPackage
from tests.targets.answers import answers

pytestmark = pytest.mark.slow

WEB = get_target("web")
QUESTIONS = DEMO / "evaluation" / "questions.jsonl"
# Where two logits lie nearer than this, rounding decides between them: a tenth of what int4 itself
# moves the demo's logits by.
NEAR_TIE = 0.1


def demo_plan(*names: str, **options: Any) -> Plan:
    first, *also = map(get_target, names)
    made = Options(first, Quantization.parse("int4"), also=tuple(also), **options)
    return plan(open_checkpoint(DEMO), made)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("web") / "demo-web"
    options = Options(WEB, Quantization.parse("int4"))
    export(open_checkpoint(DEMO), options, output, lambda *_: None)
    return output


def test_a_second_graph_costs_no_weight_twice() -> None:
    alone = demo_plan("web", activations="float32").written_bytes
    small = 1.001 * alone  # scalars and shapes
    made = demo_plan("node", "web")
    assert [graph.activations for graph in made.graphs] == ["float32", "float32", "float16"]
    assert made.written_bytes < small


def test_a_float16_graph_by_itself_would_store_other_bytes() -> None:
    """The canary: scales and biases of float16 are not those of float32."""
    alone = demo_plan("web", activations="float32").written_bytes
    assert demo_plan("web", activations="float16").written_bytes < 0.95 * alone


def test_the_manifest_says_which_graph_is_for_which_device(package: Path) -> None:
    content = json.loads((package / "manifest.json").read_text())
    plain, half = content["graphs"]
    assert (plain["graph"], plain["requires"]) == (content["graph"], [])
    assert (half["activations"], half["requires"]) == ("float16", ["shader-f16"])
    assert (plain["kv"]["dtype"], half["kv"]["dtype"]) == ("float32", "float16")
    for graph in (plain, half):
        (logits,) = (out for out in graph["outputs"] if out["name"] == "logits")
        assert logits["dtype"] == "float"  # callers read float32 whatever a graph computes in
        assert not any(layer["windowed"] for layer in graph["kv"]["layers"])
    assert max(f["size"] for f in content["files"].values()) <= 1_000_000_000
    assert WEB.max_data_bytes == 1_000_000_000


@pytest.mark.parametrize("graph", [GRAPH, "model.web.float16.onnx"])
def test_twenty_questions_are_answered_as_on_the_cpu(
    package: Path, demo_package: DemoPackage, graph: str
) -> None:
    cpu = Package.open(demo_package("int4"), threads=1)
    ours = Package.open(package, threads=1, graph=graph)
    theirs = answers(cpu, QUESTIONS, 20)["replies"]
    for reply, expected in zip(answers(ours, QUESTIONS, 20)["replies"], theirs, strict=True):
        assert reply["ids"] == expected["ids"] or near_tie(cpu, expected, reply["ids"])


def near_tie(package: Package, expected: dict[str, Any], ids: list[int]) -> bool:
    """Whether the first token that differs is one `package` itself gave nearly as much."""
    pairs = list(zip_longest(expected["ids"], ids))
    at = next(i for i, (a, b) in enumerate(pairs) if a != b)
    logits = Session(package).feed([*expected["prompt"], *ids[:at]])
    mine, other = (float(logits[token]) for token in pairs[at] if token is not None)
    return abs(mine - other) < NEAR_TIE


def test_near_tie_tells_a_tie_from_another_answer(demo_package: DemoPackage) -> None:
    cpu = Package.open(demo_package("int4"), threads=1)
    (reply, *_) = answers(cpu, QUESTIONS, 5)["replies"]
    logits = Session(cpu).feed(reply["prompt"])
    unlikely = int(np.argmin(logits))
    assert not near_tie(cpu, reply, [unlikely, *reply["ids"][1:]])


@pytest.mark.parametrize(
    ("op", "attribute", "value"),
    [
        ("QMoE", "accuracy_level", 4),
        ("GroupQueryAttention", "sliding_window_cache", 1),
        ("GroupQueryAttention", "kv_cache_bit_width", 8),
    ],
)
def test_what_1_30_does_not_know_is_refused(
    package: Path, op: str, attribute: str, value: int
) -> None:
    model = ir.load(package / GRAPH)
    VerifyTarget(WEB)(model)
    node = next(node for node in model.graph if node.op_type == op)
    node.attributes[attribute] = ir.AttrInt64(attribute, value)
    with pytest.raises(PassError, match=f"{op} on web: attribute {attribute} is not known there"):
        VerifyTarget(WEB)(model)


def test_packed_zero_points_of_experts_are_refused(package: Path) -> None:
    model = ir.load(package / GRAPH)
    node = next(node for node in model.graph if node.op_type == "QMoE")
    node.resize_inputs(12)
    node.replace_input_with(11, node.inputs[2])
    with pytest.raises(PassError, match="12 inputs where its kernel reads 11"):
        VerifyTarget(WEB)(model)


def test_large_data_is_cut_into_shards(tmp_path: Path) -> None:
    target = replace(WEB, max_data_bytes=3_000_000)
    options = Options(target, Quantization.parse("int4"), activations="float32")
    export(open_checkpoint(DEMO), options, tmp_path / "shards", lambda *_: None)
    sizes = [path.stat().st_size for path in (tmp_path / "shards").glob("*.data*")]
    assert len(sizes) >= 4
    assert max(sizes) <= 3_000_000
