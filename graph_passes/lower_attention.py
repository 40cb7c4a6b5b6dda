"""ai.gptoss::WindowedAttention and its three projections -> one linear, GroupQueryAttention.

    q = Linear(x), k = Linear(x), v = Linear(x)         qkv = Linear(x)   rows of q, k, v packed
    WindowedAttention(q, k, v, sinks, cos, sin,    ->   GroupQueryAttention(qkv, past..., lengths,
        attention_mask, past...)                            cos, sin, head_sink)

The kernel wants lengths, not a mask: tokens so far less one (seqlens_k), slots (total), and how
many of the new slots are tokens (query_seqlens: right-padded chunks of a batch; since 1.32).
A kernel that is faster without a scale gets it in the rows of q: rotary is linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.linear import Linear, linears, lowered, remove
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding, rounding_name
from gptoss_onnx.graph_passes.step import output, replace, shared_constant
from gptoss_onnx.graph_passes.weights import concatenated, scaled

INT32, INT64, FLOAT, BOOL = (
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.FLOAT,
    ir.DataType.BOOL,
)
# The attribute that a score is multiplied by, here and where attention is decomposed.
_SCALES = {"GroupQueryAttention": "scale", "FusedMatMul": "alpha"}


@dataclass(frozen=True)
class LowerAttention:
    """`kv_windows`: tokens that each layer's KV cache keeps, None for the whole sequence.

    `query_seqlens`: the kernel reads that input; without it all rows get the same tokens at once.
    `refuse_holes` makes a run fail whose rows are not padded on the right: other callers than ours
    pad on the left, and the kernel, which counts tokens, would take the wrong ones. `unit_scale`
    is for targets that want it, and for graphs that share weights with one of theirs.
    """

    quantization: Quantization
    kv_windows: Sequence[int | None]
    rounding: Rounding = SEARCH
    query_seqlens: bool = True
    refuse_holes: bool = False
    unit_scale: bool = False

    def __call__(self, model: ir.Model) -> int:
        graph = model.graph
        attentions = [node for node in graph if node.op_type == "WindowedAttention"]
        if not attentions:
            return 0
        by_output = {linear.output: linear for linear in linears(graph)}
        lengths = _Lengths(graph)
        if self.refuse_holes:
            lengths.refuse_holes(padded=self.query_seqlens)
        for node in attentions:
            self._lower(graph, node, qkv_of(node, by_output), lengths)
        return len(attentions)

    def _lower(self, graph: ir.Graph, node: ir.Node, qkv: list[Linear], lengths: _Lengths) -> None:
        window = node.attributes.get_int("window")
        global_tokens = node.attributes.get_int("num_global_tokens")
        role = qkv[0].role
        name = role.module
        packed = output(f"{name}.qkv", FLOAT)
        sinks, cos, sin, _, past_key, past_value = node.inputs[3:]
        in_query, scale = query_scale(node.attributes.get_int("head_dim"), self.unit_scale)
        attributes: dict[str, int | float] = {
            "num_heads": node.attributes.get_int("num_heads"),
            "kv_num_heads": node.attributes.get_int("kv_num_heads"),
            "scale": scale,
            "do_rotary": 1,
        }
        bias = None
        if window and global_tokens:  # no kernel has global tokens: the mask is an added bias
            bias = lengths.window_bias(window, global_tokens)
        elif window:
            attributes["local_window_size"] = window
        assert role.layer is not None
        if self.kv_windows[role.layer] is not None:
            attributes["sliding_window_cache"] = 1
            for value in (past_key, past_value, *node.outputs[1:]):
                _rename_slots(value, "window")
        inputs = [packed, None, None, past_key, past_value, lengths.tokens, lengths.total]
        inputs += [cos, sin, None, bias, sinks]
        if self.query_seqlens:
            inputs += [None] * 4 + [lengths.new_tokens]
        attention = ir.node(
            "GroupQueryAttention",
            inputs,
            attributes,
            domain="com.microsoft",
            outputs=[output(str(v.name), FLOAT, v.shape) for v in node.outputs],
            name=f"{name}.attention",
        )
        nodes = packed_qkv(graph, qkv, self.quantization, self.rounding, packed, in_query)
        replace(graph, [node], [*nodes, attention])
        remove(graph, *qkv)


def qkv_of(node: ir.Node, by_output: Mapping[ir.Value, Linear]) -> list[Linear]:
    """The three projections that a WindowedAttention reads."""
    return [by_output[value] for value in node.inputs[:3] if value is not None]


def query_scale(head_dim: int, unit_scale: bool) -> tuple[float, float]:
    """The factors of a score that the rows of q have, and that the kernel is left with."""
    scale = head_dim**-0.5
    exact = math.frexp(scale)[0] == 0.5  # a power of two rounds nothing
    return (scale, 1.0) if unit_scale and exact else (1.0, scale)


def scale_in_query(traced: ir.Graph, lowered: ir.Graph) -> float:
    """What `query_scale` put into the rows of q when `traced` became `lowered`."""
    attention = next(node for node in traced if node.op_type == "WindowedAttention")
    kept = (node.attributes.get(_SCALES.get(node.op_type, "")) for node in lowered)
    unit_scale = any(scale is not None and scale.as_float() == 1 for scale in kept)
    return query_scale(attention.attributes.get_int("head_dim"), unit_scale)[0]


def packed_qkv(
    graph: ir.Graph,
    qkv: list[Linear],
    quantization: Quantization,
    rounding: Rounding,
    packed: ir.Value,
    in_query: float,
) -> list[ir.Node]:
    """The projections as one linear whose output is `packed`: rows of q, times `in_query`, k, v."""
    weights = [linear.weight.const_value for linear in qkv]
    biases = [linear.bias.const_value for linear in qkv if linear.bias]
    if in_query != 1:
        for rows in (weights, biases):
            rows[0] = scaled(rows[0], in_query)
    weight, bias = concatenated(weights), concatenated(biases)
    role = qkv[0].role
    form, name = quantization.of_role(role), rounding_name(role)
    return lowered(graph, qkv[0].x, weight, bias, form, rounding, name, packed)


def _rename_slots(cache: ir.Value | None, name: str) -> None:
    assert cache is not None and cache.shape is not None
    batch, heads, _, dim = cache.shape
    cache.shape = ir.Shape([batch, heads, name, dim])


class _Lengths:
    """The kernel's lengths from attention_mask [B, T], computed once at the head of the graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._biases: dict[tuple[int, int], ir.Value] = {}
        ids, mask = (next(v for v in graph.inputs if v.name == n) for n in _INPUTS)
        self._first = next(iter(graph))
        one, last = self._constant("one", 1, INT32), self._constant("axis_1", [1])
        new = self._node("Shape", [ids], "new_slots", INT64, start=1, end=2)
        slots = self._node("Shape", [mask], "slots", INT64, start=1, end=2)
        first_new = self._node("Sub", [slots, new], "first_new_slot", INT64)
        new_mask = self._node("Slice", [mask, first_new, slots, last], "new_mask", INT64)
        counted = self._node("ReduceSum", [new_mask, last], "new_count", INT64, keepdims=0)
        total = self._node("ReduceSum", [mask, last], "token_count", INT64, keepdims=0)
        token_count = self._node("Cast", [total], "token_count_32", INT32, to=INT32.value)
        self.new_tokens = self._node("Cast", [counted], "query_seqlens", INT32, to=INT32.value)
        self.tokens = self._node("Sub", [token_count, one], "seqlens_k", INT32)
        slots_32 = self._node("Cast", [slots], "slots_32", INT32, to=INT32.value)
        self.total = self._node(
            "Squeeze", [slots_32, self._constant("axis_0", [0])], "total_sequence_length", INT32
        )
        self._new, self._token_count, self._counted = new, total, counted
        self._new_mask = new_mask

    def refuse_holes(self, *, padded: bool) -> None:
        """An index beyond its table, and the node's name says why, where a 0 of the new slots is
        not behind every 1 of its row; unless `padded`, where there is a 0."""
        one = self._constant("one_64", 1)
        if padded:
            zero, axis = self._constant("zero_64", 0), self._constant("axis_0", [0])
            new = self._node("Squeeze", [self._new, axis], "new_slot_count", INT64)
            ramp = self._node("Range", [zero, new, one], "new_places", INT64)  # [S]
            column = self._constant("axis_1", [1])
            counted = self._node("Unsqueeze", [self._counted, column], "new_counts", INT64)
            inside = self._node("Less", [ramp, counted], "is_counted", BOOL)  # [B, S]
            expected = self._node("Cast", [inside], "expected_mask", INT64, to=INT64.value)
        else:
            expected = one
        missed = self._node("Sub", [expected, self._new_mask], "missed", INT64)
        squares = self._node("Mul", [missed, missed], "misses", INT64)
        both = self._constant("axes_0_1", [0, 1])
        holes = self._node("ReduceSum", [squares, both], "holes", INT64, keepdims=0)
        table = self._constant("no_holes", [0], INT32)
        found = output("lengths.holes_checked", INT32)
        gather = ir.node("Gather", [table, holes], {"axis": 0}, outputs=[found], name=PAD_RIGHT)
        self._graph.insert_before(self._first, gather)
        self.tokens = self._node("Add", [self.tokens, found], "seqlens_k_checked", INT32)

    def window_bias(self, window: int, global_tokens: int) -> ir.Value:
        """float32 [B, 1, S, T], 0 where a query sees a key and -1e9 where not; causality aside."""
        key = (window, global_tokens)
        if key not in self._biases:
            self._biases[key] = self._window_bias(window, global_tokens)
        return self._biases[key]

    def _window_bias(self, window: int, global_tokens: int) -> ir.Value:
        zero, one = self._constant("zero_64", 0), self._constant("one_64", 1)
        axis = self._constant("axis_0", [0])
        new = self._node("Squeeze", [self._new, axis], "new_scalar", INT64)
        total = self._node("Cast", [self.total], "total_64", INT64, to=INT64.value)
        offsets = self._node("Range", [zero, new, one], "offsets", INT64)  # [S]
        keys = self._node("Range", [zero, total, one], "key_positions", INT64)  # [T]
        past = self._node("Sub", [self._token_count, self._counted], "past_tokens", INT64)  # [B]
        column = self._node("Unsqueeze", [past, self._constant("axis_1", [1])], "past_2", INT64)
        queries = self._node("Add", [column, offsets], "query_positions", INT64)  # [B, S]
        axes = self._constant("axes_1_3", [1, 3])
        queries_4 = self._node("Unsqueeze", [queries, axes], "query_positions_4", INT64)
        distance = self._node("Sub", [queries_4, keys], "key_distance", INT64)  # [B, 1, S, T]
        size = self._constant(f"window_{window}", window)
        count = self._constant(f"global_{global_tokens}", global_tokens)
        near = self._node("Less", [distance, size], "near", BOOL)
        first = self._node("Less", [keys, count], "is_global", BOOL)
        seen = self._node("Or", [near, first], "seen", BOOL)
        shown, hidden = self._constant("shown", 0.0, FLOAT), self._constant("hidden", -1e9, FLOAT)
        return self._node("Where", [seen, shown, hidden], f"window_bias_{window}", FLOAT)

    def _constant(self, name: str, value: object, dtype: ir.DataType = INT64) -> ir.Value:
        return shared_constant(self._graph, f"lengths.{name}", np.asarray(value, dtype.numpy()))

    def _node(
        self, op: str, inputs: list[ir.Value], name: str, dtype: ir.DataType, **attributes: int
    ) -> ir.Value:
        value = output(f"lengths.{name}", dtype)
        self._graph.insert_before(self._first, ir.node(op, inputs, attributes, outputs=[value]))
        return value


PAD_RIGHT = "attention_mask: this graph takes rows padded on the right, not on the left"
_INPUTS = ("input_ids", "attention_mask")
