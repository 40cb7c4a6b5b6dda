"""ONNX Runtime's CUDA provider on GPUs below compute capability 8.0: Volta (V100), Turing (T4).

Read from the kernels' source and out of the library of onnxruntime-gpu 1.26.0: what it registers
(tests/targets/cuda_library.py has it list that), and its device code, which begins at 6.0; that of
1.31.1 begins at 7.5. They have no bfloat16. A kernel registered from a version on, without an end,
takes nodes of that very version only: Equal has one from 13 on and none of 19, so opset 18.
"""

from __future__ import annotations

from dataclasses import replace

from gptoss_onnx.runtimes.kernels import (
    BOOL,
    GATHER_BLOCK_QUANTIZED,
    GPU_MATMUL_NBITS,
    INDEX,
    NORM,
    moving,
)
from gptoss_onnx.runtimes.target import Kernel, Target
from gptoss_onnx.runtimes.targets.cuda import TARGET as CUDA

FLOAT = frozenset({"FLOAT", "FLOAT16"})
NUMBER = FLOAT | INDEX
ANY = NUMBER | BOOL | {"UINT8"}

TARGET = Target(
    name="cuda_sm70",
    description="Linux or Windows with an NVIDIA GPU of compute capability 7.0 or 7.5 (V100, T4), "
    "through onnxruntime-gpu",
    provider="CUDAExecutionProvider",
    min_runtime="1.26",
    opset=18,
    presets=("int8", "int4"),
    activations=("float16",),
    experts="gathered",
    experts_reason="QMoE's kernels are not for 7.0; routed experts would wait for the GPU at each",
    unfit={
        ("com.microsoft", "GroupQueryAttention"): "below 8.0 its kernel takes every attention sink "
        "for 0; attention is of standard operators there",
        ("com.microsoft", "QMoE"): "its kernels are not for compute capability 7.0",
    },
    session_config=CUDA.session_config,
    # Without it this release sums the squares of SkipSimplifiedLayerNormalization in float16.
    provider_options={**CUDA.provider_options, "enable_skip_layer_norm_strict_mode": "1"},
    verified=CUDA.verified,
    kernels={
        **moving(ANY),
        ("", "SimplifiedLayerNormalization"): Kernel(FLOAT, NORM),
        ("", "MatMul"): Kernel(FLOAT),
        ("", "Softmax"): Kernel(FLOAT, {"axis": None}),
        ("", "TopK"): Kernel(NUMBER, {"axis": None, "largest": None}, inputs=2),
        ("", "Add"): Kernel(NUMBER),
        ("", "Sub"): Kernel(NUMBER),
        ("", "Mul"): Kernel(NUMBER),
        ("", "Div"): Kernel(NUMBER),
        ("", "Min"): Kernel(NUMBER),
        ("", "Max"): Kernel(NUMBER),
        ("", "Clip"): Kernel(FLOAT | {"INT64"}, inputs=3),
        ("", "Less"): Kernel(NUMBER | BOOL),  # numbers to a bool
        ("", "LessOrEqual"): Kernel(NUMBER | BOOL),
        ("", "Greater"): Kernel(NUMBER | BOOL),
        ("", "Equal"): Kernel(NUMBER | BOOL),
        ("", "And"): Kernel(BOOL),
        ("", "Or"): Kernel(BOOL),
        ("", "Where"): Kernel(NUMBER | BOOL),
        ("", "Range"): Kernel(INDEX),
        ("", "CumSum"): Kernel(NUMBER),
        ("", "ReduceSum"): Kernel(NUMBER, {"keepdims": None}),
        ("", "GatherND"): Kernel(FLOAT | {"INT64"} | BOOL, {"batch_dims": None}),
        ("", "If"): Kernel(ANY, {"then_branch": None, "else_branch": None}),
        ("com.microsoft", "RotaryEmbedding"): Kernel(FLOAT, inputs=4),
        ("com.microsoft", "FusedMatMul"): Kernel(FLOAT, {"transB": None, "alpha": None}, inputs=2),
        ("com.microsoft", "QuickGelu"): Kernel(FLOAT, {"alpha": None}, inputs=1),
        # Its kernel of 1.26 refuses a bias.
        ("com.microsoft", "MatMulNBits"): replace(GPU_MATMUL_NBITS, inputs=5),
        # Older kernels take missing zero points for 0, where the CPU's takes them for the middle.
        ("com.microsoft", "GatherBlockQuantized"): replace(
            GATHER_BLOCK_QUANTIZED, dtypes=FLOAT | {"UINT8"}, inputs=4, min_inputs=4
        ),
        ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(FLOAT, NORM, inputs=4),
    },
)
