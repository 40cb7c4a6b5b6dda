"""onnxruntime-node: ONNX Runtime's CPU provider of 1.30, from JavaScript."""

from __future__ import annotations

from dataclasses import replace

from gptoss_onnx.runtimes.targets.cpu import ORT_1_29

TARGET = replace(
    ORT_1_29,
    name="node",
    description="Node.js with onnxruntime-node, x86-64 or arm64",
    min_runtime="1.30",
    verified="x86-64: kernel table, numerics, generation on onnxruntime-node 1.30; "
    "arm64: not measured",
)
