"""onnxruntime-web 1.30 in a browser: WebGPU, and WebAssembly for what WebGPU has no kernel for.

One package serves both, on WebAssembly through the module onnxruntime-web/wasm: without WebGPU,
onnxruntime-web/webgpu has no GatherBlockQuantized. Against node's table: WebGPU refuses a windowed
cache. For several tokens two of WebGPU's kernels are wrong on some devices; the JavaScript runtime
finds out how many it may give (gpu_chunk.ts).
"""

from __future__ import annotations

from gptoss_onnx.runtimes.kernels import (
    BLOCKS,
    FLOAT,
    GATHER_BLOCK_QUANTIZED,
    GROUP_QUERY_ATTENTION,
    MATMUL_NBITS,
    NORM,
    STANDARD,
    SWIGLU,
    with_floats,
)
from gptoss_onnx.runtimes.target import Kernel, Target

TARGET = Target(
    name="web",
    description="browsers with onnxruntime-web, on WebGPU or WebAssembly",
    provider="WebGpuExecutionProvider",
    fallback="CPUExecutionProvider",
    min_runtime="1.30",
    opset=21,
    presets=("int8", "int4"),
    # A browser takes a file as one ArrayBuffer, into a WebAssembly memory of 4 GiB in all.
    max_data_bytes=1_000_000_000,
    verified="kernel table, numerics; run in Chromium 150 with onnxruntime-web 1.30: 20 answers as "
    "the CPU's on WebAssembly from both graphs, one on WebGPU (SwiftShader, which has no "
    "shader-f16); WebGPU on a GPU: not measured",
    # The plain graph first: everything that knows nothing of devices reads that one.
    activations=("float32", "float16"),
    device_features={"float16": "shader-f16"},
    experts="QMoE",
    experts_reason="a layer decodes a token on WebAssembly, one thread, in 0.6 ms against 3.1 ms "
    "routed at the demo's sizes, in 0.9 s against 2.2 s at 20B's; the demo on WebGPU (SwiftShader) "
    "in 1.5 s against 3.1 s",
    kernels=with_floats(
        {
            **STANDARD,
            ("com.microsoft", "GroupQueryAttention"): Kernel(
                FLOAT,
                GROUP_QUERY_ATTENTION,
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
                inputs=11,  # no zero points
            ),
            ("com.microsoft", "MatMulNBits"): MATMUL_NBITS,
            ("com.microsoft", "GatherBlockQuantized"): GATHER_BLOCK_QUANTIZED,
            ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(FLOAT, NORM, inputs=4),
        },
        "FLOAT16",
    ),
)
