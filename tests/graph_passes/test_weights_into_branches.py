"""A branch gets the weights that it alone reads; what others read stays where all see it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.plan import Options, plan
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.weights_into_branches import weights_into_branches
from gptoss_onnx.runtimes.target import get_target
from tests.conftest import DEMO


def branch(*weights: ir.Value) -> ir.Graph:
    node = ir.node("Sum", list(weights))
    return ir.Graph([], node.outputs, nodes=[node])


def test_only_what_one_branch_alone_reads_is_moved() -> None:
    tensors = {name: ir.tensor(np.zeros(1), name=name) for name in ("mine", "both", "main")}
    mine, both, main = (ir.Value(name=n, const_value=t) for n, t in tensors.items())
    choice = ir.Value(name="choice", type=ir.TensorType(ir.DataType.BOOL))
    then, other = branch(mine, mine, both, main), branch(both)
    node = ir.node("If", [choice], {"then_branch": then, "else_branch": other})
    graph = ir.Graph([choice], node.outputs, nodes=[node, ir.node("Identity", [main])])
    for value in (mine, both, main):
        graph.register_initializer(value)
    assert weights_into_branches(ir.Model(graph, ir_version=10)) == 1
    assert [*graph.initializers] == ["both", "main"]
    assert then.initializers == {"mine": mine} and not other.initializers


def test_routed_experts_of_older_releases_own_their_weights() -> None:
    """Six tensors of each expert: codes, scales and a bias of its two linears."""
    options = Options(get_target("cpu", "1.24"), Quantization.parse("int4", ()))
    made = plan(open_checkpoint(str(DEMO)), options)
    spec = made.checkpoint.spec
    assert weights_into_branches(made.model) == 6 * spec.num_experts * spec.num_layers
    assert weights_into_branches(made.model) == 0
    assert [t.weights_in_branches for t in get_target("cpu").older] == [False, False, True, True]
