"""onnxruntime-node: ONNX Runtime's CPU provider of 1.30, from JavaScript.

Read from the operator schemas of 1.30 and run there. Against 1.32 it lacks GQA's query_seqlens,
QMoE's accuracy_level and fp4 experts.
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
    name="node",
    description="Node.js with onnxruntime-node, x86-64 or arm64",
    provider="CPUExecutionProvider",
    min_runtime="1.30",
    opset=21,
    presets=("fp32", "int8", "int4"),
    windowed_kv=True,
    experts="routed",
    experts_reason="its QMoE dequantizes every chosen expert at each step: 33 times slower at "
    "20B's sizes, 7 times at the demo's",
    verified="x86-64: kernel table, numerics, generation on onnxruntime-node 1.30; "
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
            },
            inputs=16,
        ),
        ("com.microsoft", "QMoE"): Kernel(
            FLOAT,
            SWIGLU
            | {
                "quant_type": frozenset({"int"}),
                "expert_weight_bits": frozenset({4, 8}),
                "block_size": BLOCKS,
                "weights_prepacked": frozenset({0}),
            },
            inputs=14,
        ),
        ("com.microsoft", "MoE"): Kernel(FLOAT, SWIGLU, inputs=6),
        ("com.microsoft", "QuickGelu"): Kernel(FLOAT, {"alpha": None}),
        ("com.microsoft", "MatMulNBits"): MATMUL_NBITS,
        ("com.microsoft", "GatherBlockQuantized"): GATHER_BLOCK_QUANTIZED,
        ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(FLOAT, NORM, inputs=4),
    },
)
