"""GatherBlockQuantized -> stock operators: the same rows, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from gptoss_onnx.graph_passes.step import initializer
from gptoss_onnx.graph_passes.unpack_embedding import unpack_embedding

ROWS, COLUMNS, BLOCK = 11, 96, 32


def model(bits: int) -> ir.Model:
    rng = np.random.default_rng(bits)
    ids = ir.Value(
        name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"])
    )
    graph = ir.Graph([ids], [], nodes=[], opset_imports={"": 21, "com.microsoft": 1})
    codes = rng.integers(0, 256, (ROWS, COLUMNS * bits // 8), np.uint8)
    scales = rng.standard_normal((ROWS, COLUMNS // BLOCK), np.float32)
    tensors = (
        initializer(graph, "codes", ir.Tensor(codes)),
        initializer(graph, "scales", ir.Tensor(scales)),
    )
    out = ir.Value(
        name="out",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(["batch", "sequence", COLUMNS]),
    )
    attributes = {"bits": bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    graph.append(
        ir.node(
            "GatherBlockQuantized",
            [tensors[0], ids, tensors[1]],
            attributes,
            domain="com.microsoft",
            outputs=[out],
        )
    )
    graph.outputs.append(out)
    return ir.Model(graph, ir_version=10)


def computed(model: ir.Model) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (rows,) = session.run(None, {"ids": np.array([[0, 3, 10], [10, 7, 1]])})
    return np.asarray(rows)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_rows(bits: int) -> None:
    stock = model(bits)
    assert unpack_embedding(stock) == 1
    assert "GatherBlockQuantized" not in {node.op_type for node in stock.graph}
    np.testing.assert_array_equal(computed(stock), computed(model(bits)))


def test_canary_nibbles_turned_around_show() -> None:
    stock = model(4)
    unpack_embedding(stock)
    (pair,) = (n for n in stock.graph if str(n.outputs[0].name) == "embedding.nibbles")
    low, high = pair.inputs
    pair.replace_input_with(0, high)
    pair.replace_input_with(1, low)
    assert not np.array_equal(computed(stock), computed(model(4)))


def test_a_graph_without_one_is_left() -> None:
    stock = model(8)
    unpack_embedding(stock)
    assert unpack_embedding(stock) == 0
