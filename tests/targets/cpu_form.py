"""A target's graph as the CPU provider can run it, from the very bytes that the package holds.

bfloat16, for which that provider has hardly a kernel, becomes float32 without a change of value;
MXFP4 codes that another runtime reads by column are turned back into rows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.mxfp4 import transposed_codes

FLOAT, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16
_CODES = (2, 5)  # QMoE's inputs


def for_cpu(model: ir.Model) -> ir.Model:
    """`model`, changed in place; weights that need it are read, the others stay in their files."""
    for node in model.graph.all_nodes():
        if node.op_type == "QMoE" and _by_column(node):
            for place in _CODES:
                _turn(node.inputs[place])
            node.attributes["weights_prepacked"] = ir.AttrInt64("weights_prepacked", 1)
        if node.op_type == "Cast" and node.attributes.get_int("to") == BFLOAT16.value:
            node.attributes["to"] = ir.AttrInt64("to", FLOAT.value)
        for value in node.outputs:
            _widen(value)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _widen(value)
    return model


def _by_column(node: ir.Node) -> bool:
    quant_type = node.attributes.get_string("quant_type", "int")
    return quant_type == "fp4" and "weights_prepacked" not in node.attributes


def _turn(value: ir.Value | None) -> None:
    assert value is not None and value.const_value is not None
    rows = np.stack([transposed_codes(expert) for expert in value.const_value.numpy()])
    value.const_value = ir.Tensor(rows, name=value.name)
    value.shape = ir.Shape(rows.shape)


def _widen(value: ir.Value) -> None:
    if value.dtype == BFLOAT16:
        if value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.Tensor(array, name=value.name)
        value.type = ir.TensorType(FLOAT)
