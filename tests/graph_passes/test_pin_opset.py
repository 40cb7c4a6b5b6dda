"""An older opset where every node means the same; else the node that does not is named."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from gptoss_onnx.graph_passes.pin_opset import pin_opset
from gptoss_onnx.graph_passes.step import PassError


def model(op: str, dtype: str = "FLOAT", inputs: int = 1, **attributes: int) -> ir.Model:
    values = [ir.Value(name=f"x{i}", type=ir.TensorType(ir.DataType[dtype])) for i in range(inputs)]
    node = ir.node(op, values, attributes)
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(
    "same",
    [
        model("Cast", to=10),
        model("Reshape", inputs=2),
        model("ScatterND", inputs=3, reduction=0),
        model("SimplifiedLayerNormalization", inputs=2),  # ONNX Runtime's own
    ],
    ids=lambda made: str(next(iter(made.graph)).op_type),
)
def test_what_is_the_same_is_pinned(same: ir.Model) -> None:
    pin_opset(same, 19)
    assert same.opset_imports[""] == 19


@pytest.mark.parametrize(
    ("made", "opset", "why"),
    [
        (model("Gelu"), 19, "Gelu of opset 21 is not 19's: it is newer"),
        (
            model("Split", num_outputs=2),
            17,
            "Split of opset 21 is not 17's: it knows no num_outputs",
        ),
        (model("ReduceMax", inputs=2), 17, "ReduceMax of opset 21 is not 17's: it has 1 inputs"),
        (model("Cast", "FLOAT8E5M2", to=1), 18, r"Cast .* 18's: it takes no tensor\(float8e5m2\)"),
        (model("MatMul", inputs=2), 22, "opset 22 is wanted of a graph of opset 21"),
    ],
    ids=lambda case: "" if isinstance(case, ir.Model) else str(case)[:9],
)
def test_what_is_not_is_named(made: ir.Model, opset: int, why: str) -> None:
    with pytest.raises(PassError, match=why):
        pin_opset(made, opset)
    assert made.opset_imports[""] == 21


def test_nodes_of_branches_are_looked_at() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Gelu", [x])
    branch = ir.Graph([], node.outputs, nodes=[node])
    outer = model("If", "BOOL")
    choice = next(iter(outer.graph))
    choice.attributes["then_branch"] = ir.AttrGraph("then_branch", branch)
    with pytest.raises(PassError, match="Gelu of opset 21"):
        pin_opset(outer, 19)


def test_the_same_opset_is_no_question() -> None:
    made = model("Gelu")
    pin_opset(made, 21)
    assert made.opset_imports[""] == 21
