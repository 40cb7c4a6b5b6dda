"""ONNX Runtime's DirectML provider: any GPU of DirectX 12 on Windows.

Read out of the kernel registrations inside onnxruntime.dll of onnxruntime-directml 1.24.4, its last
release (tests/targets/directml_dll.py does); what a kernel does with its inputs from ONNX Runtime's
source. It takes a node only of the very version it registers: If ends at 19, Scatter at 16, so
opset 19 and no Scatter. It compiles a kernel anew for other shapes, so they follow from the number
of tokens alone.
"""

from __future__ import annotations

from dataclasses import replace

from gptoss_onnx.runtimes.kernels import GPU_MATMUL_NBITS, NORM, moving
from gptoss_onnx.runtimes.target import Kernel, Target

FLOAT = frozenset({"FLOAT", "FLOAT16"})
INDEX = frozenset({"INT64", "INT32"})
BOOL = frozenset({"BOOL"})
NUMBER = FLOAT | INDEX | {"UINT8"}
ANY = NUMBER | BOOL

TARGET = Target(
    name="directml",
    description="Windows with a GPU of DirectX 12, through onnxruntime-directml",
    provider="DmlExecutionProvider",
    min_runtime="1.24",
    opset=19,
    presets=("int8", "int4"),
    activations=("float16", "float32"),
    experts="gathered",
    experts_reason="it has no QMoE and no MoE; routed experts would need ScatterND, and wait for "
    "the GPU at each expert",
    unfit={
        ("com.microsoft", "GroupQueryAttention"): "its kernel silently ignores attention sinks, "
        "windows, rotary and packed QKV; attention is of standard operators there",
    },
    verified="kernel table (of the shipped DLL), numerics on ONNX Runtime's CPU provider; "
    "on a GPU: not measured",
    kernels={
        **moving(ANY),
        ("", "SimplifiedLayerNormalization"): Kernel(FLOAT, NORM),
        ("", "MatMul"): Kernel(FLOAT),
        ("", "Softmax"): Kernel(FLOAT, {"axis": None}),
        ("", "TopK"): Kernel(FLOAT | INDEX, {"axis": None, "largest": None}, inputs=2),
        ("", "Add"): Kernel(NUMBER),
        ("", "Sub"): Kernel(NUMBER),
        ("", "Mul"): Kernel(NUMBER),
        ("", "Div"): Kernel(NUMBER),
        ("", "Min"): Kernel(NUMBER, inputs=2),
        ("", "Max"): Kernel(NUMBER, inputs=2),
        ("", "Clip"): Kernel(NUMBER, inputs=3),
        ("", "Less"): Kernel(ANY),  # numbers to a bool
        ("", "LessOrEqual"): Kernel(ANY),
        ("", "Greater"): Kernel(ANY),
        ("", "Equal"): Kernel(ANY),
        ("", "And"): Kernel(BOOL),
        ("", "Or"): Kernel(BOOL),
        ("", "Where"): Kernel(ANY),
        ("", "Range"): Kernel(INDEX),
        ("", "CumSum"): Kernel(FLOAT | INDEX),
        ("", "ReduceSum"): Kernel(FLOAT | INDEX, {"keepdims": None}),
        ("", "BitwiseAnd"): Kernel(INDEX | {"UINT8"}),
        ("", "BitShift"): Kernel(frozenset({"UINT8"}), {"direction": None}),
        ("", "GatherND"): Kernel(ANY, {"batch_dims": None}),
        ("", "If"): Kernel(ANY, {"then_branch": None, "else_branch": None}),
        ("com.microsoft", "RotaryEmbedding"): Kernel(FLOAT, inputs=4),
        ("com.microsoft", "FusedMatMul"): Kernel(FLOAT, {"transB": None, "alpha": None}, inputs=2),
        ("com.microsoft", "QuickGelu"): Kernel(FLOAT, {"alpha": None}),
        # Without zero points it would take them for 0, and it counts its inputs.
        ("com.microsoft", "MatMulNBits"): replace(GPU_MATMUL_NBITS, inputs=4, min_inputs=4),
        ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(FLOAT, NORM, inputs=4),
    },
)
