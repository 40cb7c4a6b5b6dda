"""iPhones and iPads: the CPU provider of the published pod, onnxruntime-c; tables as Android's."""

from __future__ import annotations

from dataclasses import replace

from gptoss_onnx.runtimes.targets.android import phone
from gptoss_onnx.runtimes.targets.cpu import ORT_1_27, ORT_1_29

_HERE = ("ios", "arm64 iOS 15.1 or newer, onnxruntime-c")
TARGET = replace(
    phone(ORT_1_29, *_HERE, "generation on ONNX Runtime 1.29.0 from Python and Swift"),
    older=(phone(ORT_1_27, *_HERE, "generation on ONNX Runtime 1.27.0"),),
)
