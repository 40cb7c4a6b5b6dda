"""Kernel tables that several targets share: what ONNX's own operators take at opset 21.

ONNX Runtime's CPU provider has them all since before 1.22, on every system and as WebAssembly. What
differs between its releases, the operators of com.microsoft, stands in each target's own file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gptoss_onnx.runtimes.target import Attribute, Kernel

Kernels = Mapping[tuple[str, str], Kernel]

FLOAT = frozenset({"FLOAT"})
INDEX = frozenset({"INT64", "INT32"})
BOOL = frozenset({"BOOL"})
ANY = FLOAT | INDEX | BOOL
BLOCKS = frozenset({16, 32, 64, 128, 256})
NORM = {"epsilon": None, "axis": None, "stash_type": frozenset({1})}
SWIGLU = {
    "k": None,
    "normalize_routing_weights": frozenset({1}),
    "activation_type": frozenset({"swiglu"}),
    "activation_alpha": None,
    "activation_beta": None,
    "swiglu_limit": None,
    "swiglu_fusion": frozenset({1}),
}

GROUP_QUERY_ATTENTION: Mapping[str, Attribute] = {
    "num_heads": None,
    "kv_num_heads": None,
    "scale": None,
    "do_rotary": frozenset({0, 1}),
    "local_window_size": None,
}
MATMUL_NBITS = Kernel(
    FLOAT,
    {
        "N": None,
        "K": None,
        "bits": frozenset({4, 8}),
        "block_size": BLOCKS,
        "accuracy_level": frozenset({4}),
    },
    inputs=6,
)
GATHER_BLOCK_QUANTIZED = Kernel(
    FLOAT | {"UINT8"},
    {
        "bits": frozenset({4, 8}),
        "block_size": BLOCKS,
        "gather_axis": frozenset({0}),
        "quantize_axis": frozenset({1}),
    },
    inputs=3,
)

# GPUs know accuracy_level, which has no effect there.
GPU_MATMUL_NBITS = replace(
    MATMUL_NBITS,
    dtypes=FLOAT | {"FLOAT16"},
    attributes={**MATMUL_NBITS.attributes, "accuracy_level": None},
)

STANDARD: Kernels = {
    ("", "SimplifiedLayerNormalization"): Kernel(FLOAT, NORM),
    ("", "MatMul"): Kernel(FLOAT),
    ("", "Softmax"): Kernel(FLOAT, {"axis": None}),
    ("", "TopK"): Kernel(FLOAT, {"axis": None}, inputs=2),
    ("", "Add"): Kernel(FLOAT | INDEX),
    ("", "Sub"): Kernel(FLOAT | INDEX),
    ("", "Mul"): Kernel(FLOAT | INDEX),
    ("", "Max"): Kernel(FLOAT | INDEX),
    ("", "Clip"): Kernel(FLOAT, inputs=3),
    ("", "Less"): Kernel(ANY),
    ("", "Or"): Kernel(BOOL),
    ("", "Where"): Kernel(ANY),
    ("", "Range"): Kernel(INDEX),
    ("", "ConstantOfShape"): Kernel(FLOAT | {"INT64"}),
    ("", "Gather"): Kernel(ANY, {"axis": None}),
    ("", "GatherND"): Kernel(ANY, {"batch_dims": None}),
    ("", "ScatterElements"): Kernel(ANY, {"axis": None}),
    ("", "ScatterND"): Kernel(FLOAT, {"reduction": frozenset({"add"})}),
    ("", "NonZero"): Kernel(ANY),
    ("", "Transpose"): Kernel(ANY, {"perm": None}),
    ("", "Split"): Kernel(ANY, {"axis": None, "num_outputs": None}),
    ("", "Reshape"): Kernel(ANY),
    ("", "Unsqueeze"): Kernel(ANY),
    ("", "Slice"): Kernel(ANY),
    ("", "Shape"): Kernel(ANY, {"start": None, "end": None}),
    ("", "Squeeze"): Kernel(ANY),
    ("", "Identity"): Kernel(ANY),
    ("", "Cast"): Kernel(ANY, {"to": None}),
    ("", "ReduceMax"): Kernel(FLOAT | INDEX, {"keepdims": None}),
    ("", "ReduceSum"): Kernel(INDEX, {"keepdims": None}),
    ("", "If"): Kernel(ANY, {"then_branch": None, "else_branch": None}),
}


def moving(dtypes: frozenset[str]) -> Kernels:
    """Operators that compute nothing, of a provider that has them all for these element types."""
    return {
        ("", "Gather"): Kernel(dtypes, {"axis": None}),
        ("", "Concat"): Kernel(dtypes, {"axis": None}),
        ("", "Split"): Kernel(dtypes, {"axis": None, "num_outputs": None}),
        ("", "Slice"): Kernel(dtypes),
        ("", "Expand"): Kernel(dtypes),
        ("", "Transpose"): Kernel(dtypes, {"perm": None}),
        ("", "Reshape"): Kernel(dtypes),
        ("", "Squeeze"): Kernel(dtypes),
        ("", "Unsqueeze"): Kernel(dtypes),
        ("", "Shape"): Kernel(dtypes, {"start": None, "end": None}),
        ("", "Cast"): Kernel(dtypes, {"to": None}),
    }


def with_floats(kernels: Kernels, *dtypes: str) -> Kernels:
    """The same kernels where each that computes in float32 computes in `dtypes` too."""
    return {
        name: replace(kernel, dtypes=kernel.dtypes | set(dtypes))
        if FLOAT & kernel.dtypes
        else kernel
        for name, kernel in kernels.items()
    }
