"""ONNX Runtime's CUDA provider on GPUs of compute capability 8.0 (Ampere) and newer.

Read from the kernels' source and out of the libraries of onnxruntime-gpu 1.31.1: what they register
(tests/targets/cuda_library.py has them list it), its operator schemas, its kernels' messages, and
the device code it holds (7.5, 8.0, 8.6, 8.9, 9.0 and 12.0, no PTX). Every GPU that older code alone
serves, and those below 8.0, are `cuda_sm70`'s.

A float32 QMoE would silently run on the CPU: its kernels are of 16 bits only. GroupQueryAttention
with sinks takes no bias, so attention with global tokens is of standard operators, and a windowed
cache only where its capacity is exactly the window, where ours has slack: so the cache is of full
length. In 8 bits it would be turned back into 16 at every step: the kernels for that have no sinks.
"""

from __future__ import annotations

from dataclasses import replace

from gptoss_onnx.runtimes.kernels import (
    BOOL,
    GATHER_BLOCK_QUANTIZED,
    GPU_MATMUL_NBITS,
    GROUP_QUERY_ATTENTION,
    INDEX,
    NORM,
    SWIGLU,
    moving,
)
from gptoss_onnx.runtimes.target import ATTENTION_BIAS, Kernel, Target

HALF = frozenset({"FLOAT16", "BFLOAT16"})
FLOAT = HALF | {"FLOAT"}
ANY = FLOAT | INDEX | BOOL

TARGET = Target(
    name="cuda",
    description="Linux or Windows with an NVIDIA GPU of compute capability 8.0 or more, through "
    "onnxruntime-gpu",
    provider="CUDAExecutionProvider",
    min_runtime="1.31",
    opset=21,
    presets=("int8", "int4", "mxfp4"),
    activations=("float16", "bfloat16"),
    experts="QMoE",
    experts_reason="its kernels compute on the packed weights of the chosen experts",
    fp4_by_column=True,
    # Weights beside the arena, and an arena that grows by what is asked for: it doubles otherwise.
    session_config={"session.use_device_allocator_for_initializers": "1"},
    provider_options={"arena_extend_strategy": "kSameAsRequested"},
    verified="kernel table and placement (the shipped library takes every node: make test-cuda), "
    "numerics on ONNX Runtime's CPU provider; on a GPU: not measured (tests/targets/cuda_check.py "
    "does)",
    kernels={
        **moving(ANY),
        ("", "SimplifiedLayerNormalization"): Kernel(FLOAT, NORM),
        ("", "MatMul"): Kernel(FLOAT),
        ("", "Add"): Kernel(FLOAT | INDEX),
        ("", "Sub"): Kernel(FLOAT | INDEX),
        ("", "Mul"): Kernel(FLOAT | INDEX),
        ("", "ReduceSum"): Kernel(FLOAT | INDEX, {"keepdims": None}),
        # Attention with global tokens is of these.
        ("", "Softmax"): Kernel(FLOAT, {"axis": None}),
        ("", "Where"): Kernel(FLOAT | INDEX | BOOL),
        ("", "Max"): Kernel(FLOAT | INDEX),
        ("", "Less"): Kernel(INDEX | BOOL),  # numbers to a bool
        ("", "LessOrEqual"): Kernel(INDEX | BOOL),
        ("", "Greater"): Kernel(INDEX | BOOL),
        ("", "And"): Kernel(BOOL),
        ("", "Or"): Kernel(BOOL),
        ("", "CumSum"): Kernel(INDEX),
        ("", "Range"): Kernel(INDEX),
        ("com.microsoft", "RotaryEmbedding"): Kernel(FLOAT, inputs=4),
        ("com.microsoft", "FusedMatMul"): Kernel(FLOAT, {"transB": None, "alpha": None}, inputs=2),
        ("com.microsoft", "GroupQueryAttention"): Kernel(
            HALF,
            GROUP_QUERY_ATTENTION,
            inputs=12,
            absent=frozenset({ATTENTION_BIAS}),
        ),
        # Its matrix products want whole tiles of 64 weights along K.
        ("com.microsoft", "QMoE"): Kernel(
            HALF,
            SWIGLU
            | {
                "quant_type": frozenset({"int", "fp4"}),
                "expert_weight_bits": frozenset({4, 8}),
                "block_size": frozenset({32, 64}),
                "weights_prepacked": frozenset({0}),
            },
            inputs=17,
        ),
        ("com.microsoft", "MatMulNBits"): replace(GPU_MATMUL_NBITS, dtypes=FLOAT, inputs=6),
        # Older kernels take missing zero points for 0, where the CPU's takes them for the middle.
        ("com.microsoft", "GatherBlockQuantized"): replace(
            GATHER_BLOCK_QUANTIZED, dtypes=FLOAT | {"UINT8"}, inputs=4, min_inputs=4
        ),
        ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(FLOAT, NORM, inputs=4),
    },
)
