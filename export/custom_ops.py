"""ai.gptoss::WindowedAttention and ai.gptoss::MoE: the two ops of the portable graph.

Each carries a function body of standard ONNX ops, so the portable graph runs on any ONNX Runtime
and is the oracle for every kernel it is lowered to. Bodies favour plainness over speed.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

DOMAIN = "ai.gptoss"
OPSET = 21  # an open-ended kernel registration matches only its start version: newer falls to CPU

# Slot j of a row is a token where mask[j] = 1, and its position is the count of ones before it.
# Query i sees slot j when j is a token, comes no later, and lies within the window (the current
# token included) or among the first `num_global_tokens`. A sink is one more logit a head in the
# softmax that is dropped afterwards. Keys are cached rotated.
_WINDOWED_ATTENTION = """
<domain: "ai.gptoss", opset_import: ["": 21]>
WindowedAttention <num_heads, kv_num_heads, head_dim, window, num_global_tokens>
    (query, key, value, sinks, cos_cache, sin_cache, attention_mask, past_key, past_value)
 => (output, present_key, present_value)
{
    n_heads = Constant <value_int: int = @num_heads> ()
    n_kv = Constant <value_int: int = @kv_num_heads> ()
    dim = Constant <value_int: int = @head_dim> ()
    window_size = Constant <value_int: int = @window> ()
    n_global = Constant <value_int: int = @num_global_tokens> ()
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    two = Constant <value_int: int = 2> ()
    minus = Constant <value_int: int = -1> ()
    axis0 = Constant <value_ints = [0]> ()
    axis1 = Constant <value_ints = [1]> ()
    axis2 = Constant <value_ints = [2]> ()
    axis_last = Constant <value_ints = [-1]> ()

    new = Shape <start = 1, end = 2> (query)
    slots = Shape <start = 1, end = 2> (attention_mask)
    first_new = Sub (slots, new)
    one_d = Reshape (one, axis_last)

    counts = CumSum (attention_mask, one)
    slot_position = Sub (counts, one)
    query_raw = Slice (slot_position, first_new, slots, axis1)
    query_position = Max (query_raw, zero)
    half_cos = Gather <axis = 0> (cos_cache, query_position)
    half_sin = Gather <axis = 0> (sin_cache, query_position)
    cos = Unsqueeze (half_cos, axis1)
    sin = Unsqueeze (half_sin, axis1)

    zero_d = Reshape (zero, axis_last)
    minus_d = Reshape (minus, axis_last)
    n_heads_d = Reshape (n_heads, axis_last)
    n_kv_d = Reshape (n_kv, axis_last)
    dim_d = Reshape (dim, axis_last)
    q_shape = Concat <axis = 0> (zero_d, minus_d, n_heads_d, dim_d)
    kv_shape = Concat <axis = 0> (zero_d, minus_d, n_kv_d, dim_d)
    q_bsnd = Reshape (query, q_shape)
    k_bsnd = Reshape (key, kv_shape)
    v_bsnd = Reshape (value, kv_shape)
    q = Transpose <perm = [0, 2, 1, 3]> (q_bsnd)
    k = Transpose <perm = [0, 2, 1, 3]> (k_bsnd)
    v = Transpose <perm = [0, 2, 1, 3]> (v_bsnd)

    q1, q2 = Split <axis = -1, num_outputs = 2> (q)
    k1, k2 = Split <axis = -1, num_outputs = 2> (k)
    q1c = Mul (q1, cos)
    q2s = Mul (q2, sin)
    q2c = Mul (q2, cos)
    q1s = Mul (q1, sin)
    k1c = Mul (k1, cos)
    k2s = Mul (k2, sin)
    k2c = Mul (k2, cos)
    k1s = Mul (k1, sin)
    q_left = Sub (q1c, q2s)
    q_right = Add (q2c, q1s)
    k_left = Sub (k1c, k2s)
    k_right = Add (k2c, k1s)
    q_rotated = Concat <axis = -1> (q_left, q_right)
    k_rotated = Concat <axis = -1> (k_left, k_right)
    present_key = Concat <axis = 2> (past_key, k_rotated)
    present_value = Concat <axis = 2> (past_value, v)

    group = Div (n_heads, n_kv)
    group_d = Reshape (group, axis_last)
    grouped_shape = Concat <axis = 0> (zero_d, n_kv_d, group_d, minus_d, dim_d)
    q_grouped = Reshape (q_rotated, grouped_shape)
    k_all = Unsqueeze (present_key, axis2)
    v_all = Unsqueeze (present_value, axis2)
    k_transposed = Transpose <perm = [0, 1, 2, 4, 3]> (k_all)
    dots = MatMul (q_grouped, k_transposed)
    dim_float = CastLike (dim, query)
    root = Sqrt (dim_float)
    scores = Div (dots, root)

    total = Squeeze (slots, axis0)
    all_slots = Range (zero, total, one)
    query_slots = Slice (all_slots, first_new, slots, axis0)
    query_column = Unsqueeze (query_slots, axis1)
    causal = LessOrEqual (all_slots, query_column)
    is_token = Greater (attention_mask, zero)
    token_rows = Unsqueeze (is_token, axis1)
    seen = And (causal, token_rows)
    from_position = Unsqueeze (query_position, axis2)
    to_position = Unsqueeze (slot_position, axis1)
    distance = Sub (from_position, to_position)
    near = Less (distance, window_size)
    unlimited = Equal (window_size, zero)
    is_global = Less (to_position, n_global)
    near_or_global = Or (near, is_global)
    inside = Or (near_or_global, unlimited)
    visible = And (seen, inside)
    mask_axes = Constant <value_ints = [1, 2]> ()
    visible_grouped = Unsqueeze (visible, mask_axes)
    hidden_score_32 = Constant <value_float = -1.0e9> ()
    hidden_score = CastLike (hidden_score_32, query)
    masked = Where (visible_grouped, scores, hidden_score)

    sink_shape = Concat <axis = 0> (one_d, n_kv_d, group_d, one_d, one_d)
    sink_heads = Reshape (sinks, sink_shape)
    batch = Shape <start = 0, end = 1> (query)
    sink_target = Concat <axis = 0> (batch, n_kv_d, group_d, new, one_d)
    sink_column = Expand (sink_heads, sink_target)
    with_sink = Concat <axis = -1> (masked, sink_column)
    weights = Softmax <axis = -1> (with_sink)
    kept = Slice (weights, axis0, slots, axis_last)
    mixed = MatMul (kept, v_all)
    head_shape = Concat <axis = 0> (zero_d, n_heads_d, minus_d, dim_d)
    heads = Reshape (mixed, head_shape)
    tokens = Transpose <perm = [0, 2, 1, 3]> (heads)
    merged_shape = Constant <value_ints = [0, 0, -1]> ()
    output = Reshape (tokens, merged_shape)
}
"""

# Softmax runs over the chosen logits only. Rows of gate_up alternate gate, up. Every expert is
# computed for every token and weighted by its routing weight, zero where it was not chosen.
_MOE = """
<domain: "ai.gptoss", opset_import: ["": 21]>
MoE <top_k, swiglu_limit, swiglu_alpha>
    (hidden, router_logits, gate_up_weight, gate_up_bias, down_weight, down_bias) => (output)
{
    k = Constant <value_int: int = @top_k> ()
    limit_32 = Constant <value_float: float = @swiglu_limit> ()
    alpha_32 = Constant <value_float: float = @swiglu_alpha> ()
    one_32 = Constant <value_float = 1.0> ()
    limit = CastLike (limit_32, hidden)
    alpha = CastLike (alpha_32, hidden)
    one = CastLike (one_32, hidden)
    minus_limit = Neg (limit)
    minus_one = Constant <value_ints = [-1]> ()
    k_d = Reshape (k, minus_one)

    hidden_size = Shape <start = -1> (hidden)
    token_shape = Concat <axis = 0> (minus_one, hidden_size)
    x = Reshape (hidden, token_shape)
    num_experts = Shape <start = -1> (router_logits)
    logit_shape = Concat <axis = 0> (minus_one, num_experts)
    logits = Reshape (router_logits, logit_shape)
    top_logits, top_experts = TopK <axis = -1> (logits, k_d)
    top_weights = Softmax <axis = -1> (top_logits)
    none = Sub (logits, logits)
    routing = ScatterElements <axis = 1> (none, top_experts, top_weights)
    routing_by_expert = Transpose <perm = [1, 0]> (routing)

    start = Sub (x, x)
    sum = Scan <num_scan_inputs = 5, body = expert
        (float[tokens, h] acc, float[two_i, h] w1, float[two_i] b1, float[h, i] w2, float[h] b2,
         float[tokens] weight) => (float[tokens, h] acc_out)
    {
        gate_up = Gemm <transB = 1> (x, w1, b1)
        pair_shape = Constant <value_ints = [0, -1, 2]> ()
        pairs = Reshape (gate_up, pair_shape)
        gate_index = Constant <value_int = 0> ()
        up_index = Constant <value_int = 1> ()
        gate_raw = Gather <axis = 2> (pairs, gate_index)
        up_raw = Gather <axis = 2> (pairs, up_index)
        gate = Min (gate_raw, limit)
        up = Clip (up_raw, minus_limit, limit)
        gate_scaled = Mul (gate, alpha)
        sigmoid = Sigmoid (gate_scaled)
        glu = Mul (gate, sigmoid)
        up_one = Add (up, one)
        inner = Mul (up_one, glu)
        down = Gemm <transB = 1> (inner, w2, b2)
        last = Constant <value_ints = [1]> ()
        weight_column = Unsqueeze (weight, last)
        weighted = Mul (down, weight_column)
        acc_out = Add (acc, weighted)
    }> (start, gate_up_weight, gate_up_bias, down_weight, down_bias, routing_by_expert)
    out_shape = Shape (hidden)
    output = Reshape (sum, out_shape)
}
"""


def functions() -> list[ir.Function]:
    """The function bodies of both ops, freshly parsed."""
    return [
        ir.serde.deserialize_function(onnx.parser.parse_function(text))
        for text in (_WINDOWED_ATTENTION, _MOE)
    ]
