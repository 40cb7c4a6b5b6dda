"""What is outside a target's table is refused, with the reason."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graph_passes.step import PassError
from graph_passes.verify_target import VerifyTarget
from runtimes.target import Kernel, Target

TARGET = Target(
    name="probe",
    description="",
    provider="",
    min_runtime="",
    opset=21,
    presets=(),
    verified="",
    kernels={
        ("", "MatMul"): Kernel(frozenset({"FLOAT"})),
        ("", "Cast"): Kernel(frozenset({"FLOAT", "INT64"}), {"to": None}),
        ("", "Gather"): Kernel(frozenset({"FLOAT"}), {"axis": frozenset({0})}, inputs=2),
    },
)


def verify(*nodes: ir.Node, opset: int = 21) -> int:
    inputs = {v: None for node in nodes for v in node.inputs if v and v.producer() is None}
    graph = ir.Graph(list(inputs), nodes[-1].outputs, nodes=nodes, opset_imports={"": opset})
    return VerifyTarget(TARGET)(ir.Model(graph, ir_version=10))


def value(dtype: str | None = "FLOAT") -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(ir.DataType[dtype]) if dtype else None)


def node(op: str, inputs: int = 2, dtype: str | None = "FLOAT", **attributes: int) -> ir.Node:
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
    with pytest.raises(PassError, match=f"{why}$"):
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
