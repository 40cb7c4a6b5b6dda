"""ai.gptoss::WindowedAttention and its three projections -> one linear and standard operators.

    q, k, v = Linears(x)                qkv = Linear(x)   rows of q, k, v packed
    WindowedAttention(q, k, v,      ->  q, k = RotaryEmbedding(q and k of qkv)
        sinks, cos, sin, mask,          present = Concat(past, k or v)
        past_key, past_value)           Softmax(Where(visible, q k^T / sqrt(D), hidden), sink) v

For runtimes whose GroupQueryAttention lacks sinks, windows or rotary. The heads of a group share
keys and values as rows of one matrix product, so none is repeated. Slots of the mask that are 0
are holes, as in the portable graph. B batch, S new slots, T all slots, N heads, K of keys and
values, G = N / K, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.linear import Linear, linears, remove
from gptoss_onnx.graph_passes.lower_attention import packed_qkv, qkv_of, query_scale
from gptoss_onnx.graph_passes.nodes import BOOL, FLOAT, INT64, Nodes
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding
from gptoss_onnx.graph_passes.step import output, replace

HIDDEN_SCORE = -3e4  # no exponential is left of it, and float16 has it
_TO_THE_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class DecomposeAttention:
    """`unit_scale` as `LowerAttention`'s."""

    quantization: Quantization
    rounding: Rounding = SEARCH
    unit_scale: bool = False

    def __call__(self, model: ir.Model) -> int:
        graph = model.graph
        attentions = [node for node in graph if node.op_type == "WindowedAttention"]
        if not attentions:
            return 0
        by_output = {linear.output: linear for linear in linears(graph)}
        slots = _Slots(graph, _size(attentions[0], "num_heads"))
        for node in attentions:
            self._decompose(graph, node, qkv_of(node, by_output), slots)
        first = next(iter(graph))
        graph.insert_before(first, slots.nodes.nodes)
        return len(attentions)

    def _decompose(self, graph: ir.Graph, node: ir.Node, qkv: list[Linear], slots: _Slots) -> None:
        heads, kv_heads, dim = (_size(node, n) for n in ("num_heads", "kv_num_heads", "head_dim"))
        window, global_tokens = _size(node, "window"), _size(node, "num_global_tokens")
        sinks, cos, sin, _, past_key, past_value = (v for v in node.inputs[3:] if v is not None)
        name = qkv[0].role.module
        out, present_key, present_value = (
            output(str(value.name), FLOAT, value.shape) for value in node.outputs
        )
        nodes = Nodes(graph, name)
        packed = output(f"{name}.qkv", FLOAT)
        in_query, scale = query_scale(dim, self.unit_scale)
        nodes.nodes += packed_qkv(graph, qkv, self.quantization, self.rounding, packed, in_query)
        query_size, kv_size = heads * dim, kv_heads * dim
        qk, v = nodes.split(packed, ("qk", "v"), 2, (query_size + kv_size, kv_size))
        rotated = nodes.add(
            "RotaryEmbedding",
            [qk, slots.query_position, cos, sin],
            "qk_rotated",
            domain="com.microsoft",
        )
        q, k = nodes.split(rotated, ("q", "k"), 2, (query_size, kv_size))
        # [B, N, S, D] and [B, K, G S, D] are the same elements in the same order.
        q = nodes.reshape(_by_head(nodes, q, heads, dim, "q"), [0, kv_heads, -1, dim], "q_groups")
        k, v = (_by_head(nodes, x, kv_heads, dim, n) for x, n in ((k, "k"), (v, "v")))
        nodes.add_to([present_key], "Concat", [past_key, k], axis=2)  # [B, K, T, D]
        nodes.add_to([present_value], "Concat", [past_value, v], axis=2)
        scores = nodes.add(
            "FusedMatMul",
            [q, present_key],
            "scores",
            domain="com.microsoft",
            transB=1,
            alpha=scale,
        )  # [B, K, G S, T]
        scores = nodes.reshape(scores, slots.shape(heads), "head_scores")  # [B, N, S, T]
        hidden = nodes.constant(np.float32(HIDDEN_SCORE))
        scores = nodes.add("Where", [slots.visible(window, global_tokens), scores, hidden], "seen")
        sink = nodes.reshape(sinks, [1, heads, 1, 1], "sink")
        sink = nodes.add("Expand", [sink, slots.sink_shape], "sink_column")  # [B, N, S, 1]
        # The sink first, so that dropping it needs no length.
        joined = nodes.add("Concat", [sink, scores], "scores_and_sink", axis=-1)
        shares = nodes.add("Softmax", [joined], "shares_and_sink", axis=-1)
        begin, end, axis = (nodes.constant([n]) for n in (1, _TO_THE_END, 3))
        shares = nodes.add("Slice", [shares, begin, end, axis], "shares")
        shares = nodes.reshape(shares, slots.shape(kv_heads), "group_shares")  # [B, K, G S, T]
        mixed = nodes.add("MatMul", [shares, present_value], "mixed")  # [B, K, G S, D]
        mixed = nodes.reshape(mixed, [0, heads, -1, dim], "mixed_heads")
        mixed = nodes.add("Transpose", [mixed], "mixed_tokens", perm=[0, 2, 1, 3])
        nodes.add_to([out], "Reshape", [mixed, nodes.constant([0, 0, query_size])])
        replace(graph, [node], nodes.nodes, outputs=(out, present_key, present_value))
        remove(graph, *qkv)


def _size(node: ir.Node, name: str) -> int:
    return node.attributes.get_int(name)


def _by_head(nodes: Nodes, x: ir.Value, heads: int, dim: int, name: str) -> ir.Value:
    """[B, S, heads * D] as [B, heads, S, D]."""
    x = nodes.reshape(x, [0, 0, heads, dim], f"{name}_heads")
    return nodes.add("Transpose", [x], f"{name}_by_head", perm=[0, 2, 1, 3])


class _Slots:
    """Which slots each query sees, and where it stands: once a graph, from its attention_mask."""

    def __init__(self, graph: ir.Graph, heads: int) -> None:
        self.nodes = nodes = Nodes(graph, "lengths")
        self._visible: dict[tuple[int, int], ir.Value] = {}
        self._shapes: dict[int, ir.Value] = {}
        ids, mask = (
            next(value for value in graph.inputs if value.name == name)
            for name in ("input_ids", "attention_mask")
        )
        zero, one, axis_0, axis_1 = (nodes.constant(n) for n in (0, 1, [0], [1]))
        new = self._int("Shape", [ids], "new_slots", start=1, end=2)
        self._slots = slots = self._int("Shape", [mask], "slots", start=1, end=2)
        first = self._int("Sub", [slots, new], "first_new_slot")
        new_mask = self._int("Slice", [mask, first, slots, axis_1], "new_mask")
        self._int("ReduceSum", [new_mask, axis_1], "new_count", keepdims=0)  # [B]

        counts = self._int("CumSum", [mask, one], "token_counts")
        position = self._int("Sub", [counts, one], "positions")  # [B, T]
        query = self._int("Slice", [position, first, slots, axis_1], "new_positions")
        self.query_position = self._int("Max", [query, zero], "query_positions")  # [B, S]
        self._from = self._int("Unsqueeze", [self.query_position, nodes.constant([1, 3])], "from")
        self._to = self._int("Unsqueeze", [position, nodes.constant([1, 2])], "to")  # [B, 1, 1, T]

        index = self._int(
            "Range", [zero, self._int("Squeeze", [slots, axis_0], "slot_count"), one], "slot_index"
        )
        own = self._int("Slice", [index, first, slots, axis_0], "own_slot")  # [S]
        own = self._int("Unsqueeze", [own, axis_1], "own_slot_column")
        causal = nodes.add("LessOrEqual", [index, own], "causal", BOOL)  # [S, T]
        token = nodes.add("Greater", [mask, zero], "is_token", BOOL)
        token = nodes.add("Unsqueeze", [token, nodes.constant([1, 2])], "token_rows", BOOL)
        self._seen = nodes.add("And", [token, causal], "seen", BOOL)  # [B, 1, S, T]

        batch = self._int("Shape", [ids], "batch", start=0, end=1)
        self.sink_shape = self._int(
            "Concat",
            [batch, nodes.constant([heads]), new, nodes.constant([1])],
            "sink_shape",
            axis=0,
        )

    def shape(self, heads: int) -> ir.Value:
        """[B, heads, whatever is left, T]"""
        if heads not in self._shapes:
            known = self.nodes.constant([0, heads, -1])
            self._shapes[heads] = self._int(
                "Concat", [known, self._slots], f"scores_of_{heads}", axis=0
            )
        return self._shapes[heads]

    def visible(self, window: int, global_tokens: int) -> ir.Value:
        """bool [B, 1, S, T]: tokens no later than the query, within the window or global."""
        if not window:
            return self._seen
        key = window, global_tokens
        if key not in self._visible:
            self._visible[key] = self._within(window, global_tokens)
        return self._visible[key]

    def _within(self, window: int, global_tokens: int) -> ir.Value:
        nodes = self.nodes
        distance = self._int("Sub", [self._from, self._to], f"distance_{window}")  # [B, 1, S, T]
        near = nodes.add("Less", [distance, nodes.constant(window)], f"near_{window}", BOOL)
        if global_tokens:
            count = nodes.constant(global_tokens)
            first = nodes.add("Less", [self._to, count], f"global_{global_tokens}", BOOL)
            near = nodes.add("Or", [near, first], f"near_{window}_{global_tokens}", BOOL)
        return nodes.add("And", [self._seen, near], f"visible_{window}_{global_tokens}", BOOL)

    def _int(self, op: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Value:
        return self.nodes.add(op, inputs, name, INT64, "", **attributes)
