"""The last step: every node has a kernel on the target, dtypes and attributes included."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gptoss_onnx.graph_passes.step import PassError
from gptoss_onnx.runtimes.target import Target


@dataclass(frozen=True)
class VerifyTarget:
    """Counts the nodes the target takes; PassError names the first it does not, and why."""

    target: Target

    def __call__(self, model: ir.Model) -> int:
        opset = model.opset_imports.get("", 0)
        if opset != self.target.opset:
            raise PassError(f"opset {opset} on {self.target.name}: {self.target.opset} is promised")
        nodes = list(model.graph.all_nodes())  # those of branches too
        for node in nodes:
            if (why := refusal(node, self.target)) is not None:
                oldest = f"onnxruntime {self.target.min_runtime}"
                raise PassError(f"{node.name or node.op_type}: {why} ({oldest})")
        return len(nodes)


def refusal(node: ir.Node, target: Target) -> str | None:
    """Why `target` has no kernel for `node`; None when it has."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    why = target.refusal(node.domain, node.op_type, attributes, len(node.inputs))
    if why is not None:
        return why
    kernel = target.kernels[node.domain, node.op_type]
    for place in sorted(kernel.absent):
        if place < len(node.inputs) and node.inputs[place] is not None:
            return f"{node.op_type} on {target.name}: input {place} is refused by its kernel"
    # What a kernel computes in; packed weights and indices further right are the operator's own.
    for value in (*node.inputs[:1], *node.outputs[:1]):
        if value is None:
            continue
        if value.dtype is None:
            return f"{node.op_type} on {target.name}: {value.name} has no known element type"
        if value.dtype.name not in kernel.dtypes:
            return f"{node.op_type} on {target.name}: {value.dtype.name} is not in its kernel"
    return None
