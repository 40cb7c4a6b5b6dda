"""ONNX Runtime's CPU provider, x86-64 and arm64.

Read from the kernel registrations of 1.32 and run there. QMoE's quant_type "fp4" and GQA's
query_seqlens are new in 1.32, so that is the oldest runtime.
"""

from __future__ import annotations

from runtimes.kernels import (
    BLOCKS,
    FLOAT,
    GATHER_BLOCK_QUANTIZED,
    MATMUL_NBITS,
    NORM,
    STANDARD,
    SWIGLU,
)
from runtimes.target import Kernel, Target

TARGET = Target(
    name="cpu",
    description="any x86-64 or arm64 machine",
    provider="CPUExecutionProvider",
    min_runtime="1.32",
    opset=21,
    presets=("fp32", "int8", "int4", "mxfp4"),
    windowed_kv=True,
    # Without AVX-512, 1.32 computes fp4 experts with scalars: 4 ns a weight where int4 takes 0.03.
    wanted_features={"mxfp4": "avx512f"},
    verified="x86-64: kernel table, numerics and generation on ONNX Runtime 1.32; "
    "arm64: not measured",
    kernels={
        **STANDARD,
        ("com.microsoft", "GroupQueryAttention"): Kernel(
            FLOAT,
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
            FLOAT,
            SWIGLU
            | {
                "quant_type": frozenset({"int", "fp4"}),
                "expert_weight_bits": frozenset({4, 8}),
                "block_size": BLOCKS,
                "weights_prepacked": frozenset({0, 1}),
                "accuracy_level": frozenset({4}),
            },
            inputs=17,
        ),
        ("com.microsoft", "MoE"): Kernel(FLOAT, SWIGLU, inputs=6),
        ("com.microsoft", "QuickGelu"): Kernel(FLOAT, {"alpha": None}),
        ("com.microsoft", "MatMulNBits"): MATMUL_NBITS,
        ("com.microsoft", "GatherBlockQuantized"): GATHER_BLOCK_QUANTIZED,
        ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(FLOAT, NORM, inputs=4),
    },
)
