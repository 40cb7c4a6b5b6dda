"""ai.gptoss::MoE -> com.microsoft::MoE in float, com.microsoft::QMoE over packed experts.

The kernels normalize over all experts, pick the top k and renormalize: the same numbers as a
softmax over the k chosen. Gate and up rows stay interleaved (swiglu_fusion 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.expert_weights import packed_experts
from gptoss_onnx.graph_passes.quantization import Format, Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding
from gptoss_onnx.graph_passes.step import initializer, output, replace, shared_constant
from gptoss_onnx.graph_passes.weight_role import role_of
from gptoss_onnx.graph_passes.weights import ExpertWeight, StreamedTensor


@dataclass(frozen=True)
class LowerMoE:
    quantization: Quantization
    rounding: Rounding = SEARCH
    accuracy_level: bool = True  # QMoE has that attribute, and with it int8-activation kernels
    fp4_by_column: bool = False  # its kernel reads MXFP4 codes as [E, K, N/2], not as stored

    def __call__(self, model: ir.Model) -> int:
        graph = model.graph
        nodes = [node for node in graph if node.op_type == "MoE" and node.domain == "ai.gptoss"]
        for node in nodes:
            self._lower(graph, node)
        return len(nodes)

    def _lower(self, graph: ir.Graph, node: ir.Node) -> None:
        hidden, logits, gate_up, gate_up_bias, down, down_bias = node.inputs
        assert gate_up is not None and down is not None
        role = role_of(gate_up)
        name, form = role.module, self.quantization.of_role(role)
        rows = output(f"{name}.router_rows", ir.DataType.FLOAT)  # [B * S, E]: the kernels want 2-D
        flatten = ir.node("Reshape", [logits, _row_shape(graph, gate_up)], outputs=[rows])
        attributes: dict[str, int | float | str] = {
            "k": node.attributes.get_int("top_k"),
            "normalize_routing_weights": 1,
            "activation_type": "swiglu",
            "activation_alpha": node.attributes.get_float("swiglu_alpha"),
            "activation_beta": 1.0,
            "swiglu_limit": node.attributes.get_float("swiglu_limit"),
            "swiglu_fusion": 1,
        }
        if form.kind == "float":
            op, inputs = "MoE", [hidden, rows, gate_up, gate_up_bias, down, down_bias]
        else:
            op = "QMoE"
            w1, w2 = (self._packed(graph, v, form) for v in (gate_up, down))
            inputs = [hidden, rows, *w1, gate_up_bias, *w2, down_bias]
            attributes |= self._layout(form)
            if form.kind == "mxfp4":  # global scales are inputs 15 and 16
                ones = _ones(graph, gate_up)
                inputs += [None] * 7 + [ones, ones]
        out = output(str(node.outputs[0].name), ir.DataType.FLOAT, node.outputs[0].shape)
        moe = ir.node(op, inputs, attributes, domain="com.microsoft", outputs=[out], name=name)
        replace(graph, [node], [flatten, moe], gate_up, down)

    def _packed(self, graph: ir.Graph, weight: ir.Value, form: Format) -> tuple[ir.Value, ir.Value]:
        assert isinstance(weight.const_value, ExpertWeight)
        pair = packed_experts(weight.const_value, form, self.rounding, by_column=self.fp4_by_column)
        return (
            initializer(graph, str(pair.packed.name), pair.packed),
            initializer(graph, str(pair.scales.name), pair.scales),
        )

    def _layout(self, form: Format) -> dict[str, int | str]:
        layout: dict[str, int | str]
        if form.kind == "mxfp4":
            layout = {"quant_type": "fp4"}
            if not self.fp4_by_column:
                layout["weights_prepacked"] = 1  # the CPU's name for [E, N, K/2] as stored
        else:
            layout = {"quant_type": "int", "weights_prepacked": 0}
            if self.accuracy_level:
                layout["accuracy_level"] = 4  # 2.5 times faster at decode
        return layout | {"expert_weight_bits": form.bits, "block_size": form.block}


def _experts(weight: ir.Value) -> int:
    assert isinstance(weight.const_value, StreamedTensor)
    return weight.const_value.shape.numpy()[0]


def _row_shape(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    return shared_constant(graph, "experts.row_shape", np.array([-1, _experts(weight)]))


def _ones(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    return shared_constant(graph, "experts.global_scale", np.ones(_experts(weight), np.float32))
