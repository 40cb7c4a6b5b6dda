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

import numpy as np
import onnx_ir as ir

from graph_passes.expert_weights import packed_experts
from graph_passes.quantization import Format, Quantization, layer_of
from graph_passes.rounding import SEARCH, Rounding
from graph_passes.step import discard, initializer, output, shared_constant
from graph_passes.weights import ExpertWeight, Part, StreamedTensor

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


@dataclass(frozen=True)
class RouteExperts:
    """Layers whose experts are integer blocks; float ones are left to `LowerMoE`."""

    quantization: Quantization
    rounding: Rounding = SEARCH

    def __call__(self, model: ir.Model) -> int:
        graph, count = model.graph, 0
        for node in list(graph):
            if (node.domain, node.op_type) == ("ai.gptoss", "MoE"):
                form = self.quantization.of("experts", layer_of(str(node.inputs[2].name)))  # type: ignore[union-attr]
                if form.kind == "int":
                    _Layer(graph, node, form, self.rounding).lower()
                    count += 1
        return count


class _Layer:
    """One layer's rewrite. T tokens, E experts of which k are chosen, H hidden, I intermediate."""

    def __init__(self, graph: ir.Graph, node: ir.Node, form: Format, rounding: Rounding) -> None:
        self._graph, self._node, self._form = graph, node, form
        self._gate_up, self._down = _value(node, 2), _value(node, 4)
        self._name = str(self._gate_up.name).rpartition(".")[0]
        self._limit = node.attributes.get_float("swiglu_limit")
        self._alpha = node.attributes.get_float("swiglu_alpha")
        assert isinstance(self._gate_up.const_value, StreamedTensor)
        self._experts, _, self._hidden = self._gate_up.const_value.shape.numpy()
        self._linears = tuple(
            _expert_linears(weight, _value(node, place), form, rounding)
            for weight, place in ((self._gate_up, 3), (self._down, 5))
        )

    def lower(self) -> None:
        graph, node = self._graph, self._node
        main = _Nodes(graph, self._name)
        hidden, logits = _value(node, 0), _value(node, 1)
        rows = main.add("Reshape", [hidden, main.constant([-1, self._hidden])], "rows")  # [T, H]
        by_expert, chosen = self._routing(main, logits)
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
        full = main.add("Shape", [hidden], "hidden_shape", INT64)
        out = node.outputs[0]
        last = output(str(out.name), FLOAT, out.shape)
        main.nodes.append(ir.node("Reshape", [total, full], outputs=[last], name=self._name))
        graph.insert_before(node, main.nodes)
        out.replace_all_uses_with(last, replace_graph_outputs=True)
        biases = [_value(node, place) for place in (3, 5)]
        graph.remove(node, safe=True)
        discard(graph, self._gate_up, self._down, *biases)

    def _routing(self, main: _Nodes, logits: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        """Each expert's weight of each token [E, T], 0 where not chosen; whether any is not."""
        rows = main.add("Reshape", [logits, main.constant([-1, self._experts])], "router_rows")
        top_k = self._node.attributes.get_int("top_k")
        best = output(f"{self._name}.best", FLOAT)
        places = output(f"{self._name}.best_experts", INT64)
        main.nodes.append(
            ir.node("TopK", [rows, main.constant([top_k])], {"axis": 1}, outputs=[best, places])
        )
        share = main.add("Softmax", [best], "shares", axis=1)  # [T, k]
        shape = main.add("Shape", [rows], "router_shape", INT64)
        zeros = main.add("ConstantOfShape", [shape], "no_shares")
        dense = main.add("ScatterElements", [zeros, places, share], "weights", axis=1)  # [T, E]
        most = main.add("ReduceMax", [dense, main.constant([0])], "most", keepdims=0)
        any_token = main.add("Cast", [most], "chosen", BOOL, to=BOOL.value)  # [E]
        chosen = [output(f"{self._name}.{e}.chosen", BOOL) for e in range(self._experts)]
        split = {"axis": 0, "num_outputs": self._experts}
        main.nodes.append(ir.node("Split", [any_token], split, outputs=chosen))
        return main.add("Transpose", [dense], "by_expert", perm=[1, 0]), chosen

    def _expert(
        self, expert: int, rows: ir.Value, by_expert: ir.Value, total: ir.Value
    ) -> ir.Graph:
        """`total` [T, H] plus the expert's part in its tokens; n of them."""
        branch = _Nodes(self._graph, f"{self._name}.{expert}")
        mine = branch.add("Gather", [by_expert, branch.constant(expert)], "weights", axis=0)  # [T]
        found = branch.add("NonZero", [mine], "nonzero", INT64)  # [1, n]
        places = branch.add("Transpose", [found], "tokens", INT64, perm=[1, 0])  # [n, 1]
        flat = branch.add("Reshape", [found, branch.constant([-1])], "token_list", INT64)
        x = branch.add("Gather", [rows, flat], "x", axis=0)  # [n, H]
        gate_up, down = (linear[expert] for linear in self._linears)
        y = self._swiglu(branch, branch.linear(x, gate_up, self._form, "gate_up"))
        y = branch.linear(y, down, self._form, "down")  # [n, H]
        weights = branch.add("Gather", [mine, places], "token_weights", axis=0)  # [n, 1]
        part = branch.add("Mul", [y, weights], "part")
        branch.add("ScatterND", [total, places, part], "sum", reduction="add")
        return branch.graph()

    def _swiglu(self, branch: _Nodes, gate_up: ir.Value) -> ir.Value:
        """[n, I] of [n, 2I]: gate * sigmoid(alpha gate) * (up + 1), clamped; pairs interleaved."""
        limit, least = (branch.constant(np.float32(s * self._limit)) for s in (1, -1))
        pairs = branch.add("Reshape", [gate_up, branch.constant([0, -1, 2])], "pairs")
        gate, up = output(f"{branch.name}.gate", FLOAT), output(f"{branch.name}.up", FLOAT)
        split = {"axis": 2, "num_outputs": 2}
        branch.nodes.append(ir.node("Split", [pairs], split, outputs=[gate, up]))
        # Without the last axis of 1, over which a broadcast scalar is added 40 times as slowly.
        flat = branch.constant([0, -1])
        gate, up = (
            branch.add("Reshape", [v, flat], f"{n}_2d") for v, n in ((gate, "gate"), (up, "up"))
        )
        gate = branch.add("Clip", [gate, None, limit], "gate_clipped")
        gated = branch.add("QuickGelu", [gate], "gated", domain="com.microsoft", alpha=self._alpha)
        up = branch.add("Clip", [up, least, limit], "up_clipped")
        more = branch.add("Add", [up, branch.constant(np.float32(1))], "up_1")
        return branch.add("Mul", [gated, more], "activated")

    def _nothing(self, expert: int, total: ir.Value) -> ir.Graph:
        branch = _Nodes(self._graph, f"{self._name}.{expert}")
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
    stored, added = weight.const_value, bias.const_value
    assert graph is not None
    assert isinstance(stored, ExpertWeight) and isinstance(added, StreamedTensor)
    pair = packed_experts(stored, form, rounding)
    experts, rows, columns = stored.shape.numpy()
    blocks = (rows, columns // form.block, form.block * form.bits // 8)
    prefix, _, name = str(weight.name).rpartition(".")

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


class _Nodes:
    """Nodes of one graph in order, their outputs named after `name`; constants are the model's."""

    def __init__(self, model_graph: ir.Graph, name: str) -> None:
        self.name = name
        self.nodes: list[ir.Node] = []
        self._model_graph = model_graph

    def add(
        self,
        op: str,
        inputs: list[ir.Value | None],
        name: str,
        dtype: ir.DataType = FLOAT,
        domain: str = "",
        **attributes: object,
    ) -> ir.Value:
        value = output(f"{self.name}.{name}", dtype)
        self.nodes.append(ir.node(op, inputs, attributes, domain=domain, outputs=[value]))  # type: ignore[arg-type]
        return value

    def linear(self, x: ir.Value, linear: _Linear, form: Format, name: str) -> ir.Value:
        """[n, N] of x [n, K]."""
        packed, scales, bias = linear.weights
        return self.add(
            "MatMulNBits",
            [x, packed, scales, None, None, bias],
            name,
            domain="com.microsoft",
            N=linear.rows,
            K=linear.columns,
            bits=form.bits,
            block_size=form.block,
            accuracy_level=4,
        )

    def constant(self, value: object) -> ir.Value:
        array = np.asarray(value)
        shown = "_".join(map(str, array.reshape(-1).tolist()))
        rank = "" if array.ndim else "scalar_"
        return shared_constant(self._model_graph, f"route.{rank}{shown}", array)

    def graph(self) -> ir.Graph:
        """A branch of these nodes, which gives the last one's output."""
        return ir.Graph([], [self.nodes[-1].outputs[0]], nodes=self.nodes, name=self.name)


def _value(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None
    return value
