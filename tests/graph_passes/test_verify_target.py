"""What is outside a target's table is refused, with the reason."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from gptoss_onnx.graph_passes.step import PassError
from gptoss_onnx.graph_passes.verify_target import VerifyTarget
from gptoss_onnx.runtimes.target import Kernel, Target, get_target

TARGET = Target(
    name="probe",
    description="",
    provider="",
    min_runtime="1.2",
    opset=21,
    presets=(),
    verified="",
    kernels={
        ("", "MatMul"): Kernel(frozenset({"FLOAT"})),
        ("", "Cast"): Kernel(frozenset({"FLOAT", "INT64"}), {"to": None}),
        ("", "Gather"): Kernel(frozenset({"FLOAT"}), {"axis": frozenset({0})}, inputs=2),
        ("", "If"): Kernel(
            frozenset({"BOOL", "FLOAT"}), {"then_branch": None, "else_branch": None}
        ),
    },
)


def verify(*nodes: ir.Node, opset: int = 21) -> int:
    inputs = {v: None for node in nodes for v in node.inputs if v and v.producer() is None}
    graph = ir.Graph(list(inputs), nodes[-1].outputs, nodes=nodes, opset_imports={"": opset})
    return VerifyTarget(TARGET)(ir.Model(graph, ir_version=10))


def choice(*branch: ir.Node) -> ir.Node:
    graphs = [ir.Graph([], branch[-1].outputs, nodes=branch), ir.Graph([], [], nodes=[])]
    branches = dict(zip(("then_branch", "else_branch"), graphs, strict=True))
    return ir.node("If", [value("BOOL")], branches, outputs=[value()])


def value(dtype: str | None = "FLOAT") -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(ir.DataType[dtype]) if dtype else None)


def node(op: str, inputs: int = 2, dtype: str | None = "FLOAT", **attributes: object) -> ir.Node:
    domain, _, name = op.rpartition("::")
    values = [value(dtype) for _ in range(inputs)]
    return ir.node(name, values, attributes, domain=domain, outputs=[value(dtype)])


def test_what_the_target_takes_is_counted() -> None:
    nodes = [node("MatMul"), node("Cast", 1, "INT64", to=1), node("Gather", axis=0)]
    assert verify(*nodes) == 3


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (node("Conv"), "Conv on probe: no kernel"),
        (node("com.microsoft::MatMul"), "MatMul on probe: no kernel"),
        (node("MatMul", transA=1), "MatMul on probe: attribute transA is not known there"),
        (node("Gather", axis=1), r"Gather on probe: axis=1 is not one of \[0\]"),
        (node("Gather", 3, axis=0), "Gather on probe: 3 inputs where its kernel reads 2"),
        (node("MatMul", dtype="FLOAT16"), "MatMul on probe: FLOAT16 is not in its kernel"),
        (node("MatMul", dtype="DOUBLE"), "MatMul on probe: DOUBLE is not in its kernel"),
        (node("MatMul", dtype=None), "MatMul on probe: x has no known element type"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_what_it_does_not_take_is_refused(refused: ir.Node, why: str) -> None:
    with pytest.raises(PassError, match=rf"{why} \(onnxruntime 1.2\)$"):
        verify(node("MatMul"), refused)


def test_an_output_of_another_type_is_refused() -> None:
    refused = node("Cast", 1, "FLOAT", to=10)
    refused.outputs[0].dtype = ir.DataType.FLOAT16
    with pytest.raises(PassError, match="FLOAT16 is not in its kernel"):
        verify(refused)


@pytest.mark.parametrize("opset", [20, 22])
def test_another_opset_is_refused(opset: int) -> None:
    with pytest.raises(PassError, match=f"opset {opset} on probe: 21 is promised"):
        verify(node("MatMul"), opset=opset)


def test_nodes_of_branches_are_looked_at() -> None:
    assert verify(choice(node("MatMul"), node("MatMul"))) == 3
    with pytest.raises(PassError, match="Conv on probe: no kernel"):
        verify(choice(node("MatMul"), node("Conv")))


GQA = "GroupQueryAttention"
WINDOW = {"sliding_window_cache": 1}
INT8_KV = {"k_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
# Target and runtime, a node that is newer than that or refused there, and why it is.
NEWER = [
    ("cpu", "1.31", GQA, 17, {}, "17 inputs where its kernel reads 16"),
    ("cpu", "1.31", "QMoE", 17, {"quant_type": "fp4"}, r"quant_type=fp4 is not one of \['int'\]"),
    (
        "cpu",
        "1.30",
        "QMoE",
        8,
        {"accuracy_level": 4},
        "attribute accuracy_level is not known there",
    ),
    ("cpu", "1.28", GQA, 12, WINDOW, "attribute sliding_window_cache is not known there"),
    ("cpu", "1.26", GQA, 14, INT8_KV, "attribute k_quant_type is not known there"),
    ("cpu", "1.24", GQA, 13, {}, "13 inputs where its kernel reads 12"),
    ("node", None, "QMoE", 8, {"accuracy_level": 4}, "attribute accuracy_level is not known there"),
    ("node", None, "QMoE", 8, {"quant_type": "fp4"}, r"quant_type=fp4 is not one of \['int'\]"),
    ("node", None, GQA, 17, {}, "17 inputs where its kernel reads 16"),
    ("web", None, GQA, 17, {}, "17 inputs where its kernel reads 16"),
    ("web", None, GQA, 12, WINDOW, "attribute sliding_window_cache is not known there"),
]


@pytest.mark.parametrize(("name", "runtime", "op", "inputs", "attributes", "why"), NEWER)
def test_what_a_runtime_does_not_know_yet_is_refused(
    name: str, runtime: str | None, op: str, inputs: int, attributes: dict[str, object], why: str
) -> None:
    graph = ir.Graph([], [], nodes=[node(f"com.microsoft::{op}", inputs, **attributes)])
    graph.opset_imports[""] = 21
    model, target = ir.Model(graph, ir_version=10), get_target(name, runtime)
    assert VerifyTarget(get_target("cpu"))(model) == 1
    where = f"onnxruntime {target.min_runtime}"
    with pytest.raises(PassError, match=rf"{op} on {name}: {why} \({where}\)$"):
        VerifyTarget(target)(model)
