"""ONNX Runtime's DirectML provider: any GPU of DirectX 12 on Windows.

Read out of the kernel registrations inside onnxruntime.dll of onnxruntime-directml 1.24.4, its last
release (tests/targets/directml_dll.py does); what a kernel does with its inputs from ONNX Runtime's
source. It takes a node only of the very version it registers: If ends at 19, Scatter at 16, so
opset 19 and no Scatter. It compiles a kernel anew for other shapes, so they follow from the number
of tokens alone.
"""

from __future__ import annotations

from runtimes.kernels import BLOCKS, NORM
from runtimes.target import Kernel, Target

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
        ("", "Gather"): Kernel(ANY, {"axis": None}),
        ("", "GatherND"): Kernel(ANY, {"batch_dims": None}),
        ("", "Concat"): Kernel(ANY, {"axis": None}),
        ("", "Split"): Kernel(ANY, {"axis": None, "num_outputs": None}),
        ("", "Slice"): Kernel(ANY),
        ("", "Expand"): Kernel(ANY),
        ("", "Transpose"): Kernel(ANY, {"perm": None}),
        ("", "Reshape"): Kernel(ANY),
        ("", "Squeeze"): Kernel(ANY),
        ("", "Unsqueeze"): Kernel(ANY),
        ("", "Shape"): Kernel(ANY, {"start": None, "end": None}),
        ("", "Cast"): Kernel(ANY, {"to": None}),
        ("", "If"): Kernel(ANY, {"then_branch": None, "else_branch": None}),
        ("com.microsoft", "RotaryEmbedding"): Kernel(FLOAT, inputs=4),
        ("com.microsoft", "FusedMatMul"): Kernel(FLOAT, {"transB": None, "alpha": None}, inputs=2),
        ("com.microsoft", "QuickGelu"): Kernel(FLOAT, {"alpha": None}),
        # Without zero points it would take them for 0, and it counts its inputs.
        ("com.microsoft", "MatMulNBits"): Kernel(
            FLOAT,
            {
                "N": None,
                "K": None,
                "bits": frozenset({4, 8}),
                "block_size": BLOCKS,
                "accuracy_level": None,  # known, and of no effect
            },
            inputs=4,
            min_inputs=4,
        ),
        ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(FLOAT, NORM, inputs=4),
    },
)
