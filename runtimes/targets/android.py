"""Android phones: the CPU provider of the published AAR, onnxruntime-android.

1.29 is the oldest release whose attention keeps an int8 KV cache and only the window of a sliding
layer; on 1.27 and 1.28 the int8 cache has the full length. Newest AAR seen: 1.29.0 (2026-09).
"""

from __future__ import annotations

from dataclasses import replace

from gptoss_onnx.runtimes.target import Target
from gptoss_onnx.runtimes.targets.cpu import ORT_1_27, ORT_1_29


def phone(table: Target, name: str, description: str, verified: str) -> Target:
    """A release's CPU table on a phone, where memory is short and a store's pack ends at 1.5 GB."""
    return replace(
        table,
        name=name,
        description=description,
        kv="int8",
        max_data_bytes=1_500_000_000,
        ort_files=True,
        verified=f"x86-64: kernel table, numerics, {verified}; on a phone: not measured",
    )


_HERE = ("android", "arm64 Android 7 or newer, onnxruntime-android")
TARGET = replace(
    phone(ORT_1_29, *_HERE, "generation on 1.29.0 from Python and, by the AAR's JNI, from Kotlin"),
    older=(phone(ORT_1_27, *_HERE, "generation on ONNX Runtime 1.27.0"),),
)
