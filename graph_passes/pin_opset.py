"""The model's opset -> an older one, where every node means the same.

A runtime whose kernels are registered from a version on without an end takes only nodes of that
very version: DirectML's If is of 19, so at 21 it would run on the CPU.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from gptoss_onnx.graph_passes.step import PassError


def pin_opset(model: ir.Model, opset: int) -> None:
    """PassError names the first node that the older opset has not, and why."""
    now = model.opset_imports[""]
    if opset > now:
        raise PassError(f"opset {opset} is wanted of a graph of opset {now}")
    for node in model.graph.all_nodes() if opset < now else ():
        if (why := _change(node, now, opset)) is not None:
            raise PassError(f"{node.op_type} of opset {now} is not {opset}'s: {why}")
    model.opset_imports[""] = opset


def _change(node: ir.Node, now: int, opset: int) -> str | None:
    """How a node would change; what a name means has not between the opsets we trace and pin."""
    if node.domain != "" or not onnx.defs.has(node.op_type):
        return None  # ONNX Runtime's own operators are of no opset
    try:
        newer, older = (onnx.defs.get_schema(node.op_type, n) for n in (now, opset))
    except onnx.defs.SchemaError:
        return "it is newer"
    if newer.since_version == older.since_version:
        return None
    if added := set(node.attributes) - set(older.attributes):
        return f"it knows no {', '.join(sorted(added))}"
    if len(node.inputs) > older.max_input:
        return f"it has {older.max_input} inputs"
    types = {
        constraint.type_param_str: constraint.allowed_type_strs
        for constraint in older.type_constraints
    }
    for value, formal in zip(node.inputs, older.inputs, strict=False):
        allowed = types.get(formal.type_str)
        if allowed and value is not None and value.dtype is not None:
            name = f"tensor({value.dtype.name.lower()})"
            if name not in allowed:
                return f"it takes no {name}"
    return None
