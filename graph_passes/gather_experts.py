"""ai.gptoss::MoE -> experts gathered by index, for runtimes with neither QMoE nor ScatterND.

    MoE(x, logits, gate_up, down)  ->  If(one token, of_token, of_blocks)

    block j of b rows:  Gather(codes [E, N, K/g, g/2], its expert) -> MatMulNBits, as in
                        down_e(SwiGLU(gate_up_e(rows of j)))

Weights are stored once and as QMoE's; only a block's expert is copied, as codes. One token is k
blocks of one row. More are sorted by expert and each expert's rows filled up to whole blocks of
b = ceil(T k / E): at most 2E blocks, however they were routed. So every shape follows from T alone
(nothing waits for the GPU to count), no tensor is empty, and memory is that of 2 T k rows and one
expert. The price is up to twice the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gptoss_onnx.graph_passes.expert_layer import ExpertLayer, expert_layers, expert_weight
from gptoss_onnx.graph_passes.expert_weights import packed_experts
from gptoss_onnx.graph_passes.nodes import BOOL, FLOAT, INT64, Nodes
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding
from gptoss_onnx.graph_passes.step import initializer, output
from gptoss_onnx.graph_passes.weight_role import carry_role
from gptoss_onnx.graph_passes.weights import StreamedTensor


@dataclass(frozen=True)
class GatherExperts:
    """Layers whose experts are integer blocks."""

    quantization: Quantization
    rounding: Rounding = SEARCH

    def __call__(self, model: ir.Model) -> int:
        layers = list(expert_layers(model.graph, self.quantization))
        one_token = None
        for layer in layers:
            one_token = _Gatherer(layer, self.rounding).lower(one_token)
        return len(layers)


@dataclass(frozen=True)
class _Stored:
    """A projection of all experts: codes [E, N, K/g, bytes], scales [E, N, K/g], bias [E, N]."""

    codes: ir.Value
    scales: ir.Value
    bias: ir.Value
    rows: int
    columns: int


class _Gatherer:
    """One layer's rewrite; dimensions are `ExpertLayer`'s. M blocks of b rows, n = T k pairs."""

    def __init__(self, layer: ExpertLayer, rounding: Rounding) -> None:
        self._layer = layer
        self._gate_up = _stored(layer, layer.gate_up, layer.gate_up_bias, rounding)
        self._down = _stored(layer, layer.down, layer.down_bias, rounding)

    def lower(self, one_token: ir.Value | None) -> ir.Value:
        """`one_token` [1] is whether there is one, as an earlier layer found; it is returned."""
        layer = self._layer
        main = Nodes(layer.graph, layer.name)
        rows = layer.rows(main)
        shares, places = layer.chosen(main, layer.router_rows(main))
        if one_token is None:
            count = main.add("Shape", [rows], "token_count", INT64, start=0, end=1)
            one_token = main.add("Equal", [count, main.constant([1])], "one_token", BOOL)
        total = main.add(
            "If",
            [one_token],
            "sum",
            then_branch=self._of_token(rows, shares, places),
            else_branch=self._of_blocks(rows, shares, places),
        )
        layer.replace(main, total)
        return one_token

    def _of_token(self, rows: ir.Value, shares: ir.Value, places: ir.Value) -> ir.Graph:
        """T = 1: k blocks, each of the one row."""
        branch = Nodes(self._layer.graph, f"{self._layer.name}.token")
        experts = branch.reshape(places, [-1], "experts")  # [k]
        y = self._blocks(branch, [rows] * self._layer.top_k, experts)  # [k, H]
        branch.add("MatMul", [shares, y], "sum")
        return branch.graph()

    def _of_blocks(self, rows: ir.Value, shares: ir.Value, places: ir.Value) -> ir.Graph:
        layer = self._layer
        branch = Nodes(layer.graph, f"{layer.name}.blocks")
        plan = _Plan(layer, places)
        branch.nodes += plan.nodes
        x = branch.add("Gather", [rows, plan.tokens], "x", axis=0)  # [M, b, H]
        x = branch.reshape(x, [-1, layer.hidden_size], "x_rows")
        blocks = branch.split(x, [f"{block}.x" for block in range(plan.count)], axis=0)
        y = self._blocks(branch, blocks, plan.experts)  # [M * b, H]
        mine = branch.add("Gather", [y, plan.positions], "mine", axis=0)  # [T, k, H]
        row = branch.add("Unsqueeze", [shares, branch.constant([1])], "share_rows")  # [T, 1, k]
        mixed = branch.add("MatMul", [row, mine], "mixed")  # [T, 1, H]
        branch.reshape(mixed, [-1, layer.hidden_size], "sum")
        return branch.graph()

    def _blocks(self, nodes: Nodes, blocks: list[ir.Value], experts: ir.Value) -> ir.Value:
        """[M * b, H]: what expert `experts[j]` makes of `blocks[j]` [b, H], block after block."""
        chosen = [
            nodes.add("Gather", [experts, nodes.constant(block)], f"{block}.expert", INT64, axis=0)
            for block in range(len(blocks))
        ]
        gate_up = self._linear(nodes, blocks, experts, chosen, self._gate_up, "gate_up")
        inner = self._layer.swiglu(nodes, gate_up)  # [M * b, I]
        blocks = nodes.split(inner, [f"{block}.inner" for block in range(len(blocks))], axis=0)
        return self._linear(nodes, blocks, experts, chosen, self._down, "down")

    def _linear(
        self,
        nodes: Nodes,
        blocks: list[ir.Value],
        experts: ir.Value,
        chosen: list[ir.Value],
        stored: _Stored,
        name: str,
    ) -> ir.Value:
        """[M * b, N] of the blocks [b, K], each by the weights of its expert."""
        products = [
            self._product(nodes, x, expert, stored, f"{block}.{name}")
            for block, (x, expert) in enumerate(zip(blocks, chosen, strict=True))
        ]
        product = nodes.add("Concat", products, f"{name}.products", axis=0)
        product = nodes.reshape(product, [len(blocks), -1, stored.rows], f"{name}.by_block")
        bias = nodes.add("Gather", [stored.bias, experts], f"{name}.biases", axis=0)  # [M, N]
        bias = nodes.add("Unsqueeze", [bias, nodes.constant([1])], f"{name}.bias_rows")
        total = nodes.add("Add", [product, bias], f"{name}.sum")  # [M, b, N]
        return nodes.reshape(total, [-1, stored.rows], name)

    def _product(
        self, nodes: Nodes, x: ir.Value, expert: ir.Value, stored: _Stored, name: str
    ) -> ir.Value:
        """[b, N] of x [b, K] by the weights of one expert, gathered."""
        form = self._layer.form
        codes, scales = (
            nodes.add("Gather", [value, expert], f"{name}.{kind}", dtype, axis=0)
            for value, kind, dtype in (
                (stored.codes, "codes", ir.DataType.UINT8),
                (stored.scales, "scales", FLOAT),
            )
        )
        return nodes.add(
            "MatMulNBits",
            [x, codes, scales],
            f"{name}.product",
            domain="com.microsoft",
            N=stored.rows,
            K=stored.columns,
            bits=form.bits,
            block_size=form.block,
            accuracy_level=4,
        )


class _Plan:
    """Which pair (token, choice) goes to which row of which block, from the choices [T, k].

    Integers only. `experts` [M] is each block's, `tokens` [M, b] each row's (some token's where a
    row is only there to fill up) and `positions` [T, k] the row of each choice in [M * b].
    """

    def __init__(self, layer: ExpertLayer, places: ir.Value) -> None:
        self._nodes = nodes = Nodes(layer.graph, f"{layer.name}.plan")
        self.nodes, experts = nodes.nodes, layer.num_experts
        self.count = 2 * experts
        zero, one, k = nodes.constant(0), nodes.constant([1]), nodes.constant([layer.top_k])
        pairs = nodes.reshape(places, [-1], "pairs")  # [n], the expert of each
        n = nodes.add("Shape", [pairs], "pair_count", INT64)
        b = self._upward(n, nodes.constant([experts]), "block_rows")

        # Sorted by expert; keys are unique, so that no runtime's order of equals matters.
        high = self._int("Mul", [pairs, n], "key_high")
        key = self._int("Add", [high, self._range(n, "pair_index")], "key")
        order = self._sorted(key, n, "order")  # [n]: place in that order -> pair
        rank = self._sorted(order, n, "rank")  # [n]: pair -> place

        ids = self._range(nodes.constant([experts]), "expert_ids")
        counts = self._count("Equal", self._column(pairs, "pair_column"), ids, 0, "pairs_of")  # [E]
        end = self._int("CumSum", [counts, zero], "end_of")
        first = self._int("Sub", [end, counts], "first_of")  # [E]: place of its first pair
        blocks = self._upward(counts, b, "blocks_of")
        end = self._int("CumSum", [blocks, zero], "end_block_of")
        start = self._int("Sub", [end, blocks], "first_block_of")  # [E]

        block = self._range(nodes.constant([self.count]), "block_index")  # [M]
        column = self._column(block, "block_column")
        before = self._count("LessOrEqual", end, column, 1, "experts_before")
        last = nodes.constant([experts - 1])  # of blocks that nobody needs
        self.experts = self._int("Min", [before, last], "block_experts")  # [M]

        # Row c of block j has its expert's pair number (j - start) b + c.
        inside = self._int("Sub", [block, self._of(self.experts, start, "start")], "block_inside")
        skipped = self._int("Mul", [inside, b], "rows_before")
        begin = self._int("Add", [self._of(self.experts, first, "first"), skipped], "block_begin")
        row = self._range(b, "row_index")
        at = self._int("Add", [self._column(begin, "begin_column"), row], "row_places")  # [M, b]
        at = self._int("Min", [at, self._int("Sub", [n, one], "last_place")], "valid_places")
        self.tokens = self._int("Div", [self._of(at, order, "row_pairs"), k], "row_tokens")

        behind = self._int("Sub", [rank, self._of(pairs, first, "pair_first")], "pair_behind")
        ahead = self._int("Mul", [self._of(pairs, start, "pair_start"), b], "pair_ahead")
        position = self._int("Add", [ahead, behind], "pair_position")  # [n]
        self.positions = nodes.reshape(position, [-1, layer.top_k], "positions")

    def _int(self, op: str, inputs: list[ir.Value], name: str) -> ir.Value:
        return self._nodes.add(op, inputs, name, INT64)

    def _of(self, keys: ir.Value, values: ir.Value, name: str) -> ir.Value:
        """values[keys]"""
        return self._nodes.add("Gather", [values, keys], name, INT64, axis=0)

    def _column(self, values: ir.Value, name: str) -> ir.Value:
        return self._int("Unsqueeze", [values, self._nodes.constant([1])], name)

    def _upward(self, value: ir.Value, divisor: ir.Value, name: str) -> ir.Value:
        """value / divisor, rounded up."""
        less = self._int("Sub", [divisor, self._nodes.constant([1])], f"{name}.less")
        return self._int("Div", [self._int("Add", [value, less], f"{name}.more"), divisor], name)

    def _range(self, count: ir.Value, name: str) -> ir.Value:
        nodes = self._nodes
        stop = self._int("Squeeze", [count, nodes.constant([0])], f"{name}.stop")
        return self._int("Range", [nodes.constant(0), stop, nodes.constant(1)], name)

    def _sorted(self, key: ir.Value, count: ir.Value, name: str) -> ir.Value:
        """Where each element of the sorted `key` is from."""
        keys, places = (output(f"{self._nodes.name}.{name}{end}", INT64) for end in (".keys", ""))
        self._nodes.add_to([keys, places], "TopK", [key, count], axis=0, largest=0)
        return places

    def _count(self, op: str, a: ir.Value, b: ir.Value, axis: int, name: str) -> ir.Value:
        """How often `op` holds along an axis of a against b."""
        nodes = self._nodes
        holds = nodes.add(op, [a, b], f"{name}.holds", BOOL)
        ones = nodes.add("Cast", [holds], f"{name}.ones", INT64, to=INT64.value)
        return nodes.add("ReduceSum", [ones, nodes.constant([axis])], name, INT64, keepdims=0)


def _stored(layer: ExpertLayer, weight: ir.Value, bias: ir.Value, rounding: Rounding) -> _Stored:
    form, stored = layer.form, expert_weight(weight)
    pair = packed_experts(stored, form, rounding)
    experts, rows, columns = stored.shape.numpy()
    blocks = (experts, rows, columns // form.block, form.block * form.bits // 8)
    codes = StreamedTensor(pair.packed.chunks, pair.packed.dtype, blocks)
    carry_role(stored, codes)
    return _Stored(
        initializer(layer.graph, str(pair.packed.name), codes),
        initializer(layer.graph, str(pair.scales.name), pair.scales),
        bias,
        rows,
        columns,
    )
