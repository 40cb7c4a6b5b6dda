"""DirectML: what is refused and why, what its graphs are made of, and the CPU's answers."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import GRAPH, Options, Plan, plan, weight_bytes
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.step import PassError
from gptoss_onnx.graph_passes.verify_target import VerifyTarget
from gptoss_onnx.runtimes.manifest import Manifest
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.target import Kernel, get_target
from tests.conftest import DEMO, DemoPackage
from tests.installed import WINDOWS, installed
from tests.targets.answers import answers
from tests.targets.directml_dll import Library, wrong
from tests.targets.test_cpu_releases import LOAD, under

pytestmark = pytest.mark.slow

DIRECTML = get_target("directml")
QUESTIONS = DEMO / "evaluation" / "questions.jsonl"
LAYERS = 2


def node(op: str, inputs: int, dtype: str = "FLOAT16", **attributes: object) -> ir.Node:
    def value() -> ir.Value:
        return ir.Value(name="x", type=ir.TensorType(ir.DataType[dtype]))

    values = [value() for _ in range(inputs)]
    return ir.node(op, values, attributes, domain="com.microsoft", outputs=[value()])


def verify(*nodes: ir.Node, opset: int = 19) -> int:
    graph = ir.Graph([], [], nodes=nodes, opset_imports={"": opset})
    return VerifyTarget(DIRECTML)(ir.Model(graph, ir_version=10))


LINEAR = {"N": 64, "K": 64, "bits": 4, "block_size": 32}
REFUSED = {
    "GroupQueryAttention": (
        node("GroupQueryAttention", 12, num_heads=8, kv_num_heads=2),
        "GroupQueryAttention on directml: its kernel silently ignores attention sinks, windows",
    ),
    "QMoE": (node("QMoE", 8, k=4), "QMoE on directml: no kernel"),
    "MoE": (node("MoE", 6, k=4), "MoE on directml: no kernel"),
    "a bias": (
        node("MatMulNBits", 6, **LINEAR),
        "MatMulNBits on directml: 6 inputs where its kernel reads 4",
    ),
    "no zero points": (
        node("MatMulNBits", 3, **LINEAR),
        "MatMulNBits on directml: 3 inputs where its kernel wants 4",
    ),
    "two bits": (
        node("MatMulNBits", 4, **(LINEAR | {"bits": 2})),
        r"MatMulNBits on directml: bits=2 is not one of \[4, 8\]",
    ),
    "bfloat16": (
        node("QuickGelu", 1, "BFLOAT16", alpha=1.0),
        "QuickGelu on directml: BFLOAT16 is not in its kernel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case: str) -> None:
    refused, why = REFUSED[case]
    assert verify(node("MatMulNBits", 4, **LINEAR)) == 1
    with pytest.raises(PassError, match=why):
        verify(refused)


def test_an_opset_whose_if_it_has_not_is_refused() -> None:
    with pytest.raises(PassError, match="opset 21 on directml: 19 is promised"):
        verify(opset=21)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Wide enough for biases to be as small a part as they are in 20B, almost."""
    sizes = {"hidden": 640, "intermediate": 640, "experts": 8, "vocab": 4096, "layers": LAYERS}
    folder = tmp_path_factory.mktemp("directml") / "wide"
    return open_checkpoint(synthesize(folder, geometry="tiny", **sizes))


def planned(checkpoint: Checkpoint, *changes: str, activations: str | None = None) -> Plan:
    quantization = Quantization.parse("int4", changes)
    return plan(checkpoint, Options(DIRECTML, quantization, activations=activations))


def test_a_graph_of_standard_operators(checkpoint: Checkpoint) -> None:
    (graph,) = planned(checkpoint).graphs
    assert graph.activations == "float16"
    assert graph.model.opset_imports[""] == 19
    found = Counter(node.op_type for node in graph.model.graph.all_nodes())
    spec = checkpoint.spec
    blocks = spec.experts_per_token + 2 * spec.num_experts  # of one token, of many
    assert found["If"] == LAYERS
    ifs = [node for node in graph.model.graph if node.op_type == "If"]
    assert len({node.inputs[0] for node in ifs}) == 1  # the number of tokens is asked once
    assert found["MatMulNBits"] == LAYERS * (2 + 2 * blocks) + 1
    assert found["RotaryEmbedding"] == LAYERS
    assert not {op for op in found if "Scatter" in op or op in ("NonZero", "GroupQueryAttention")}


def expert_bits(made: Plan) -> float:
    """Of an expert weight in the files, scales and biases included."""
    spec = made.checkpoint.spec
    weights = 3 * spec.hidden_size * spec.intermediate_size * spec.num_experts * LAYERS
    return 8 * weight_bytes(made)["experts"] / weights


def test_an_expert_weight_takes_less_than_5_bits(checkpoint: Checkpoint) -> None:
    assert 4.5 <= expert_bits(planned(checkpoint)) < 4.55


def test_canary_more_scales_take_more_than_5_bits(checkpoint: Checkpoint) -> None:
    assert expert_bits(planned(checkpoint, "experts=int4:16", activations="float32")) > 5


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("directml") / "demo"
    options = Options(DIRECTML, Quantization.parse("int4"))
    export(open_checkpoint(str(DEMO)), options, folder, lambda *_: None)
    return folder


def test_the_manifest_says_how_it_runs(package: Path) -> None:
    manifest = Manifest.load(package)
    assert (manifest.activations, manifest.kv.dtype, manifest.kv.in_place) == (
        "float16",
        "float16",
        False,
    )
    assert manifest.padded_batches
    assert manifest.session["providers"] == ["DmlExecutionProvider"]
    assert json.loads((package / "manifest.json").read_text())["min_runtime"] == "1.24"


def test_the_cpus_answers(package: Path, demo_package: DemoPackage) -> None:
    """Twenty questions, and one at the end of a conversation longer than the window."""
    ours = Package.open(package, providers=["CPUExecutionProvider"])
    theirs = Package.open(demo_package("int4"))
    found, wanted = (answers(one, QUESTIONS, 20)["replies"] for one in (ours, theirs))
    assert len(wanted) == 21
    assert [reply["ids"] for reply in found] == [reply["ids"] for reply in wanted]


def test_the_oldest_runtime_loads_it(package: Path) -> None:
    """By its loader and schemas, which every build of a release shares."""
    loaded = under("1.24.3", "-c", LOAD, package / GRAPH)
    assert loaded.returncode == 0, loaded.stderr


@pytest.fixture(scope="module")
def library() -> Library:
    """The last release's, from its wheel for Windows."""
    wheel = installed("onnxruntime-directml", "1.24.4", *WINDOWS)
    return Library(wheel / "onnxruntime" / "capi" / "onnxruntime.dll")


def test_the_table_is_the_librarys(library: Library) -> None:
    assert wrong(DIRECTML, library) == []


def test_canary_what_the_library_has_not(library: Library) -> None:
    absent = [("com.microsoft", "QMoE"), ("com.microsoft", "GatherBlockQuantized"), ("", "Loop")]
    newer = ("", "ScatterND")
    kernels = {key: Kernel(frozenset({"FLOAT"})) for key in (*absent, newer)}
    kernels["", "Softmax"] = Kernel(frozenset({"BFLOAT16"}))
    target = dataclasses.replace(DIRECTML, kernels=kernels)
    problems = wrong(target, library)
    assert len(problems) == len(kernels)
    assert {"ScatterND: no kernel of version 18", "Softmax: no kernel for BFLOAT16"} < {*problems}
