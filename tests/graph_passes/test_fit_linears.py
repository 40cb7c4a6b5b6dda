"""MatMulNBits as a kernel reads it: its bias beside it, zero points that change nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from gptoss_onnx.graph_passes.fit_linears import FitLinears
from gptoss_onnx.graph_passes.step import initializer

ROWS, COLUMNS = 6, 96  # three blocks: zero points of 4 bits fill a byte and a half
EXACTLY_FOUR = FitLinears(inputs=4, min_inputs=4)


def linear(graph: ir.Graph, x: ir.Value, name: str, bits: int, *, bias: bool) -> ir.Node:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 256, (ROWS, 3, 32 * bits // 8), np.uint8)
    scales = rng.standard_normal((ROWS, 3), np.float32)
    inputs = [
        x,
        *(
            initializer(graph, f"{name}.{n}", ir.Tensor(a))
            for n, a in (("codes", codes), ("scales", scales))
        ),
    ]
    if bias:
        added = ir.Tensor(rng.standard_normal(ROWS, np.float32))
        inputs += [None, None, initializer(graph, f"{name}.bias", added)]
    attributes = {"N": ROWS, "K": COLUMNS, "bits": bits, "block_size": 32}
    out = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    return ir.node(
        "MatMulNBits", inputs, attributes, domain="com.microsoft", outputs=[out], name=name
    )


def model(bits: int) -> ir.Model:
    """One with a bias, one without, and one in a branch."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, COLUMNS]))
    chosen = ir.Value(name="chosen", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1]))
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([x, chosen], [], nodes=[], opset_imports=opsets)
    nodes = [linear(graph, x, name, bits, bias=name == "biased") for name in ("biased", "plain")]
    inner = [linear(graph, x, name, bits, bias=True) for name in ("then", "else")]
    branches = {
        f"{n.name}_branch": ir.Graph([], list(n.outputs), nodes=[n], name=str(n.name))
        for n in inner
    }
    out = ir.Value(name="branched", type=ir.TensorType(ir.DataType.FLOAT))
    nodes.append(ir.node("If", [chosen], branches, outputs=[out]))
    graph.extend(nodes)
    graph.outputs.extend(node.outputs[0] for node in nodes)
    for value in graph.outputs:
        value.shape = ir.Shape([2, ROWS])
    return ir.Model(graph, ir_version=10)


def computed(model: ir.Model) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal((2, COLUMNS), np.float32)
    return list(session.run(None, {"x": x, "chosen": np.array([True])}))


def packed(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == "MatMulNBits"]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_numbers(bits: int) -> None:
    wanted = computed(model(bits))
    fitted = model(bits)
    assert EXACTLY_FOUR(fitted) == 2  # the branches' are fitted too
    assert [len(node.inputs) for node in packed(fitted)] == [4] * 4
    for ours, theirs in zip(computed(fitted), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("bits", "shape"), [(4, (ROWS, 2)), (8, (ROWS, 3))])
def test_one_constant_for_each_size(bits: int, shape: tuple[int, int]) -> None:
    fitted = model(bits)
    EXACTLY_FOUR(fitted)
    assert len({node.inputs[3] for node in packed(fitted)}) == 1
    zeros = packed(fitted)[0].inputs[3].const_value.numpy()
    assert (zeros.shape, set(zeros.reshape(-1))) == (shape, {0x88 if bits == 4 else 0x80})


def test_canary_other_zero_points_show() -> None:
    wanted = computed(model(4))
    fitted = model(4)
    EXACTLY_FOUR(fitted)
    zeros = packed(fitted)[0].inputs[3]
    zeros.const_value = ir.Tensor(zeros.const_value.numpy() - 0x11, name=zeros.name)
    assert not np.allclose(computed(fitted)[1], wanted[1], rtol=1e-2, atol=1e-1)


def test_a_kernel_that_reads_all_is_given_all() -> None:
    fitted = model(4)
    assert FitLinears(inputs=6, min_inputs=3)(fitted) == 2
    assert [len(node.inputs) for node in packed(fitted)] == [6, 3, 6, 6]
