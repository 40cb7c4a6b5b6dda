"""ONNX Runtime's CPU provider, x86-64 and arm64: its oldest table, and what each release added.

Read from the operator schemas and kernel registrations that each release's wheel lists, and run
there. Releases without a table (1.25, 1.26, 1.28, 1.30) have what the one before them has, as far
as packages use it.
"""

from __future__ import annotations

from dataclasses import replace

from gptoss_onnx.runtimes.kernels import (
    BLOCKS,
    FLOAT,
    GATHER_BLOCK_QUANTIZED,
    GROUP_QUERY_ATTENTION,
    MATMUL_NBITS,
    NORM,
    STANDARD,
    SWIGLU,
)
from gptoss_onnx.runtimes.target import Attribute, Kernel, Target

ATTENTION, QMOE = ("com.microsoft", "GroupQueryAttention"), ("com.microsoft", "QMoE")


def _more(older: Target, operator: tuple[str, str], inputs: int, **known: Attribute) -> Kernel:
    """An older kernel that reads more inputs and knows more attributes, or more values of them."""
    kernel = older.kernels[operator]
    return replace(kernel, inputs=inputs, attributes={**kernel.attributes, **known})


ORT_1_24 = Target(
    name="cpu",
    description="any x86-64 or arm64 machine",
    provider="CPUExecutionProvider",
    min_runtime="1.24",
    opset=21,
    presets=("fp32", "int8", "int4"),
    experts="routed",
    experts_reason="its QMoE dequantizes every chosen expert at each step: 33 times slower at "
    "20B's sizes, 7 times at the demo's",
    weights_in_branches=True,
    unit_scale=True,  # one row of queries has a kernel of its own, without a scale
    verified="x86-64: kernel table, generation on ONNX Runtime 1.24.3; "
    "arm64: generation under qemu as cortex-a72 and cortex-a76; on hardware: not measured",
    kernels={
        **STANDARD,
        ATTENTION: Kernel(
            FLOAT,
            GROUP_QUERY_ATTENTION,
            inputs=12,
        ),
        QMOE: Kernel(
            FLOAT,
            SWIGLU | {"expert_weight_bits": frozenset({4, 8}), "block_size": BLOCKS},
            inputs=14,
        ),
        ("com.microsoft", "MoE"): Kernel(FLOAT, SWIGLU, inputs=6),
        ("com.microsoft", "FusedMatMul"): Kernel(FLOAT, {"transB": None}, inputs=2),
        ("com.microsoft", "QuickGelu"): Kernel(FLOAT, {"alpha": None}, inputs=1),
        ("com.microsoft", "MatMulNBits"): MATMUL_NBITS,
        ("com.microsoft", "GatherBlockQuantized"): GATHER_BLOCK_QUANTIZED,
        ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(FLOAT, NORM, inputs=4),
    },
)

_int8_kv = _more(
    ORT_1_24,
    ATTENTION,
    inputs=14,  # scales of keys and values
    k_quant_type=frozenset({"NONE", "PER_CHANNEL"}),
    v_quant_type=frozenset({"NONE", "PER_CHANNEL"}),
    kv_cache_bit_width=frozenset({8}),
)
ORT_1_27 = replace(
    ORT_1_24,
    min_runtime="1.27",
    verified="x86-64: kernel table, generation on ONNX Runtime 1.27.0; arm64: not measured",
    kernels={**ORT_1_24.kernels, ATTENTION: _int8_kv},
)

_windowed = _more(ORT_1_27, ATTENTION, inputs=16, sliding_window_cache=frozenset({0, 1}))
_typed = _more(
    ORT_1_27,
    QMOE,
    inputs=15,
    quant_type=frozenset({"int"}),
    weights_prepacked=frozenset({0}),
)
ORT_1_29 = replace(
    ORT_1_27,
    min_runtime="1.29",
    weights_in_branches=False,
    windowed_kv=True,
    verified="x86-64: kernel table, generation on ONNX Runtime 1.29.0; arm64: not measured",
    kernels={**ORT_1_27.kernels, ATTENTION: _windowed, QMOE: _typed},
)

_int8_activations = _more(ORT_1_29, QMOE, inputs=15, accuracy_level=frozenset({4}))
ORT_1_31 = replace(
    ORT_1_29,
    min_runtime="1.31",
    experts="QMoE",
    experts_reason="",
    verified="x86-64: kernel table, generation on ONNX Runtime 1.31.0; arm64: not measured",
    kernels={**ORT_1_29.kernels, QMOE: _int8_activations},
)

_mxfp4 = _more(
    ORT_1_31,
    QMOE,
    inputs=17,  # global scales
    quant_type=frozenset({"int", "fp4"}),
    weights_prepacked=frozenset({0, 1}),
)
TARGET = replace(
    ORT_1_31,
    min_runtime="1.32",
    presets=("fp32", "int8", "int4", "mxfp4"),
    # Without AVX-512, 1.32 computes fp4 experts with scalars: 4 ns a weight where int4 takes 0.03.
    wanted_features={"mxfp4": "avx512f"},
    verified="x86-64: kernel table, numerics, generation on ONNX Runtime 1.32; "
    "arm64: generation under qemu as cortex-a72 and cortex-a76; on hardware: not measured",
    kernels={
        **ORT_1_31.kernels,
        ATTENTION: _more(ORT_1_31, ATTENTION, inputs=17),  # lengths of right-padded rows
        QMOE: _mxfp4,
    },
    older=(ORT_1_31, ORT_1_29, ORT_1_27, ORT_1_24),
)
