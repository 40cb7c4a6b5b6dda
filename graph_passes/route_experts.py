"""ai.gptoss::MoE -> routed experts of stock operators, for runtimes whose QMoE is slow or missing.

    MoE(x, logits, gate_up, down)  ->  weights [T, E] = Scatter(Softmax(TopK(logits)))
                                       sum = 0 [T, H]
                                       sum = If(any of weights[:, e], expert e, sum)   for each e

    expert e:  tokens = NonZero(weights[:, e])
               sum + Scatter(weights[tokens, e] * down_e(SwiGLU(gate_up_e(x[tokens]))))

An expert no token chose costs one Identity. Weights are initializers outside the branches, where
they are prepacked at load; their bytes are QMoE's, an expert a slice of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gptoss_onnx.graph_passes.expert_layer import ExpertLayer, expert_layers, expert_weight
from gptoss_onnx.graph_passes.expert_weights import packed_experts
from gptoss_onnx.graph_passes.nodes import BOOL, INT64, Nodes
from gptoss_onnx.graph_passes.quantization import Format, Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding
from gptoss_onnx.graph_passes.step import initializer
from gptoss_onnx.graph_passes.weight_role import role_of
from gptoss_onnx.graph_passes.weights import Part, StreamedTensor


@dataclass(frozen=True)
class RouteExperts:
    """Layers whose experts are integer blocks; float ones are left to `LowerMoE`."""

    quantization: Quantization
    rounding: Rounding = SEARCH

    def __call__(self, model: ir.Model) -> int:
        layers = list(expert_layers(model.graph, self.quantization))
        for layer in layers:
            _Router(layer, self.rounding).lower()
        return len(layers)


class _Router:
    """One layer's rewrite; dimensions are `ExpertLayer`'s."""

    def __init__(self, layer: ExpertLayer, rounding: Rounding) -> None:
        self._layer, self._graph, self._name = layer, layer.graph, layer.name
        self._linears = tuple(
            _expert_linears(weight, bias, layer.form, rounding)
            for weight, bias in (
                (layer.gate_up, layer.gate_up_bias),
                (layer.down, layer.down_bias),
            )
        )

    def lower(self) -> None:
        main = Nodes(self._graph, self._name)
        rows = self._layer.rows(main)
        by_expert, chosen = self._routing(main)
        shape = main.add("Shape", [rows], "rows_shape", INT64)
        total = main.add("ConstantOfShape", [shape], "sum_0")  # [T, H]
        for expert, is_chosen in enumerate(chosen):
            total = main.add(
                "If",
                [is_chosen],
                f"sum_{expert + 1}",
                then_branch=self._expert(expert, rows, by_expert, total),
                else_branch=self._nothing(expert, total),
            )
        self._layer.replace(main, total)

    def _routing(self, main: Nodes) -> tuple[ir.Value, list[ir.Value]]:
        """Each expert's weight of each token [E, T], 0 where not chosen; whether any is not."""
        rows = self._layer.router_rows(main)
        share, places = self._layer.chosen(main, rows)
        shape = main.add("Shape", [rows], "router_shape", INT64)
        zeros = main.add("ConstantOfShape", [shape], "no_shares")
        dense = main.add("ScatterElements", [zeros, places, share], "weights", axis=1)  # [T, E]
        most = main.add("ReduceMax", [dense, main.constant([0])], "most", keepdims=0)
        any_token = main.add("Cast", [most], "chosen", BOOL, to=BOOL.value)  # [E]
        chosen = main.split(
            any_token, [f"{e}.chosen" for e in range(self._layer.num_experts)], axis=0
        )
        return main.add("Transpose", [dense], "by_expert", perm=[1, 0]), chosen

    def _expert(
        self, expert: int, rows: ir.Value, by_expert: ir.Value, total: ir.Value
    ) -> ir.Graph:
        """`total` [T, H] plus the expert's part in its tokens; n of them."""
        branch = Nodes(self._graph, f"{self._name}.{expert}")
        mine = branch.add("Gather", [by_expert, branch.constant(expert)], "weights", axis=0)  # [T]
        found = branch.add("NonZero", [mine], "nonzero", INT64)  # [1, n]
        places = branch.add("Transpose", [found], "tokens", INT64, perm=[1, 0])  # [n, 1]
        flat = branch.reshape(found, [-1], "token_list")
        x = branch.add("Gather", [rows, flat], "x", axis=0)  # [n, H]
        gate_up, down = (linear[expert] for linear in self._linears)
        y = self._layer.swiglu(branch, self._linear(branch, x, gate_up, "gate_up"))
        y = self._linear(branch, y, down, "down")  # [n, H]
        weights = branch.add("Gather", [mine, places], "token_weights", axis=0)  # [n, 1]
        part = branch.add("Mul", [y, weights], "part")
        branch.add("ScatterND", [total, places, part], "sum", reduction="add")
        return branch.graph()

    def _linear(self, branch: Nodes, x: ir.Value, linear: _Linear, name: str) -> ir.Value:
        """[n, N] of x [n, K]."""
        packed, scales, bias = linear.weights
        return branch.add(
            "MatMulNBits",
            [x, packed, scales, None, None, bias],
            name,
            domain="com.microsoft",
            N=linear.rows,
            K=linear.columns,
            bits=self._layer.form.bits,
            block_size=self._layer.form.block,
            accuracy_level=4,
        )

    def _nothing(self, expert: int, total: ir.Value) -> ir.Graph:
        branch = Nodes(self._graph, f"{self._name}.{expert}")
        branch.add("Identity", [total], "unchanged")
        return branch.graph()


@dataclass(frozen=True)
class _Linear:
    """One expert's projection: codes [N, K/block, bytes], scales [N, K/block], bias [N]."""

    weights: tuple[ir.Value, ir.Value, ir.Value]
    rows: int
    columns: int


def _expert_linears(
    weight: ir.Value, bias: ir.Value, form: Format, rounding: Rounding
) -> list[_Linear]:
    """Each expert's slices of the packed weight [E, N, K] and of the bias [E, N]."""
    graph = weight.graph
    stored, added = expert_weight(weight), bias.const_value
    assert graph is not None and isinstance(added, StreamedTensor)
    pair = packed_experts(stored, form, rounding)
    experts, rows, columns = stored.shape.numpy()
    blocks = (rows, columns // form.block, form.block * form.bits // 8)
    role = role_of(weight)
    prefix, name = role.module, role.leaf

    def linear(expert: int) -> _Linear:
        parts = {
            f"{name}_{str(form).partition(':')[0]}": Part(pair.packed, expert, blocks),
            f"{name}_scales": Part(pair.scales, expert),
            f"{name}_bias": Part(added, expert),
        }
        packed, scales, bias = (
            initializer(graph, f"{prefix}.{expert}.{key}", part) for key, part in parts.items()
        )
        return _Linear((packed, scales, bias), rows, columns)

    return [linear(expert) for expert in range(experts)]
