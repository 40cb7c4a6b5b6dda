"""ONNX Runtime's CPU provider, x86-64 and arm64.

Read from the kernel registrations of 1.32 and run there. QMoE's quant_type "fp4" and GQA's
query_seqlens are new in 1.32, so that is the oldest runtime.
"""

from __future__ import annotations

from runtimes.target import Kernel, Target

_FLOAT = frozenset({"FLOAT"})
_INDEX = frozenset({"INT64", "INT32"})
_ANY = _FLOAT | _INDEX | {"BOOL"}
_BLOCKS = frozenset({16, 32, 64, 128, 256})
_SWIGLU = {
    "k": None,
    "normalize_routing_weights": frozenset({1}),
    "activation_type": frozenset({"swiglu"}),
    "activation_alpha": None,
    "activation_beta": None,
    "swiglu_limit": None,
    "swiglu_fusion": frozenset({1}),
}
_NORM = {"epsilon": None, "axis": None, "stash_type": frozenset({1})}

TARGET = Target(
    name="cpu",
    description="any x86-64 or arm64 machine",
    provider="CPUExecutionProvider",
    min_runtime="1.32",
    opset=21,
    presets=("fp32", "int8", "int4", "mxfp4"),
    windowed_kv=True,
    kv_dtypes=("float32", "int8"),
    # Without AVX-512, 1.32 computes fp4 experts with scalars: 4 ns a weight where int4 takes 0.03.
    wanted_features={"mxfp4": "avx512f"},
    verified="x86-64: kernel table, numerics and generation on ONNX Runtime 1.32; "
    "arm64: not measured",
    kernels={
        ("com.microsoft", "GroupQueryAttention"): Kernel(
            _FLOAT,
            {
                "num_heads": None,
                "kv_num_heads": None,
                "scale": None,
                "do_rotary": frozenset({0, 1}),
                "local_window_size": None,
                "sliding_window_cache": frozenset({0, 1}),
                "k_quant_type": frozenset({"PER_CHANNEL"}),
                "v_quant_type": frozenset({"PER_CHANNEL"}),
                "kv_cache_bit_width": frozenset({8}),
            },
            inputs=17,
        ),
        ("com.microsoft", "QMoE"): Kernel(
            _FLOAT,
            _SWIGLU
            | {
                "quant_type": frozenset({"int", "fp4"}),
                "expert_weight_bits": frozenset({4, 8}),
                "block_size": _BLOCKS,
                "weights_prepacked": frozenset({0, 1}),
                "accuracy_level": frozenset({4}),
            },
            inputs=17,
        ),
        ("com.microsoft", "MoE"): Kernel(_FLOAT, _SWIGLU, inputs=6),
        ("com.microsoft", "MatMulNBits"): Kernel(
            _FLOAT,
            {
                "N": None,
                "K": None,
                "bits": frozenset({4, 8}),
                "block_size": _BLOCKS,
                "accuracy_level": frozenset({4}),
            },
            inputs=6,
        ),
        ("com.microsoft", "GatherBlockQuantized"): Kernel(
            _FLOAT | {"UINT8"},
            {
                "bits": frozenset({4, 8}),
                "block_size": _BLOCKS,
                "gather_axis": frozenset({0}),
                "quantize_axis": frozenset({1}),
            },
            inputs=3,
        ),
        ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(_FLOAT, _NORM, inputs=4),
        ("", "SimplifiedLayerNormalization"): Kernel(_FLOAT, _NORM),
        ("", "MatMul"): Kernel(_FLOAT),
        ("", "Add"): Kernel(_FLOAT | _INDEX),
        ("", "Sub"): Kernel(_FLOAT | _INDEX),
        ("", "Max"): Kernel(_FLOAT | _INDEX),
        ("", "Less"): Kernel(_ANY),
        ("", "Or"): Kernel(frozenset({"BOOL"})),
        ("", "Where"): Kernel(_ANY),
        ("", "Range"): Kernel(_INDEX),
        ("", "Gather"): Kernel(_ANY, {"axis": None}),
        ("", "GatherND"): Kernel(_ANY, {"batch_dims": None}),
        ("", "Reshape"): Kernel(_ANY),
        ("", "Unsqueeze"): Kernel(_ANY),
        ("", "Slice"): Kernel(_ANY),
        ("", "Shape"): Kernel(_ANY, {"start": None, "end": None}),
        ("", "Squeeze"): Kernel(_ANY),
        ("", "Cast"): Kernel(_ANY, {"to": None}),
        ("", "ReduceSum"): Kernel(_INDEX, {"keepdims": None}),
    },
)
