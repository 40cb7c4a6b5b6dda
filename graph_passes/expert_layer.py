"""An ai.gptoss::MoE node, and the parts that every form of it from stock operators has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.nodes import FLOAT, INT64, Nodes
from gptoss_onnx.graph_passes.quantization import Format, Quantization
from gptoss_onnx.graph_passes.step import output, replace
from gptoss_onnx.graph_passes.weight_role import role_of
from gptoss_onnx.graph_passes.weights import ExpertWeight, StreamedTensor


class ExpertLayer:
    """One layer. T tokens, E experts of which k are chosen, H hidden, I intermediate."""

    def __init__(self, graph: ir.Graph, node: ir.Node, form: Format) -> None:
        self.graph, self.form, self._node = graph, form, node
        values = [value for value in node.inputs if value is not None]
        self._hidden, self._logits, self.gate_up, self.gate_up_bias, self.down, self.down_bias = (
            values
        )
        self.name = role_of(self.gate_up).module
        self.top_k = node.attributes.get_int("top_k")
        self._limit = node.attributes.get_float("swiglu_limit")
        self._alpha = node.attributes.get_float("swiglu_alpha")
        self.num_experts, pairs, self.hidden_size = _shape(self.gate_up)
        self.intermediate_size = pairs // 2

    def rows(self, nodes: Nodes) -> ir.Value:
        """The tokens, [T, H]."""
        return nodes.reshape(self._hidden, [-1, self.hidden_size], "rows")

    def router_rows(self, nodes: Nodes) -> ir.Value:
        """The router's logits, [T, E]."""
        return nodes.reshape(self._logits, [-1, self.num_experts], "router_rows")

    def chosen(self, nodes: Nodes, router_rows: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Each token's experts: their shares, float [T, k], and which they are, int64 [T, k]."""
        best = output(f"{nodes.name}.best", FLOAT)
        places = output(f"{nodes.name}.best_experts", INT64)
        nodes.add_to([best, places], "TopK", [router_rows, nodes.constant([self.top_k])], axis=1)
        return nodes.add("Softmax", [best], "shares", axis=1), places

    def swiglu(self, nodes: Nodes, gate_up: ir.Value) -> ir.Value:
        """[n, I] of [n, 2I]: gate * sigmoid(alpha gate) * (up + 1), clamped; pairs interleaved."""
        limit, least = (nodes.constant(np.float32(s * self._limit)) for s in (1, -1))
        pairs, halves = nodes.reshape(gate_up, [0, -1, 2], "pairs"), ("gate", "up")
        # Without the last axis of 1, over which a broadcast scalar is added 40 times as slowly.
        gate, up = (
            nodes.reshape(half, [0, -1], f"{name}_2d")
            for name, half in zip(halves, nodes.split(pairs, halves, axis=2), strict=True)
        )
        gate = nodes.add("Clip", [gate, None, limit], "gate_clipped")
        gated = nodes.add("QuickGelu", [gate], "gated", domain="com.microsoft", alpha=self._alpha)
        up = nodes.add("Clip", [up, least, limit], "up_clipped")
        more = nodes.add("Add", [up, nodes.constant(np.float32(1))], "up_1")
        return nodes.add("Mul", [gated, more], "activated")

    def replace(self, nodes: Nodes, total: ir.Value) -> None:
        """Put `nodes`, whose `total` [T, H] is the experts' sum, where the node was."""
        out = self._node.outputs[0]
        full = nodes.add("Shape", [self._hidden], "hidden_shape", INT64)
        last = output(str(out.name), FLOAT, out.shape)
        nodes.add_to([last], "Reshape", [total, full])
        weights = self.gate_up, self.gate_up_bias, self.down, self.down_bias
        replace(self.graph, [self._node], nodes.nodes, *weights)


def expert_layers(graph: ir.Graph, quantization: Quantization) -> Iterator[ExpertLayer]:
    """Layers whose experts are integer blocks; float and MXFP4 ones are an operator's own."""
    for node in list(graph):
        if (node.domain, node.op_type) == ("ai.gptoss", "MoE"):
            form = quantization.of_role(role_of(node.inputs[2]))
            if form.kind == "int":
                yield ExpertLayer(graph, node, form)


def _shape(weight: ir.Value) -> tuple[int, int, int]:
    assert isinstance(weight.const_value, StreamedTensor)
    experts, rows, columns = weight.const_value.shape.numpy()
    return experts, rows, columns


def expert_weight(value: ir.Value) -> ExpertWeight:
    """The stored experts [E, N, K] of an initializer."""
    assert isinstance(value.const_value, ExpertWeight)
    return value.const_value
