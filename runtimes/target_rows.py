"""A target as the command line shows it."""

from __future__ import annotations

from typing import Any

from gptoss_onnx.runtimes.target import Target


def describe(target: Target) -> dict[str, Any]:
    """A target as a row of `gptoss targets`."""
    reason = f": {target.experts_reason}" if target.experts_reason else ""
    return {
        "name": target.name,
        "runs_on": target.description,
        "provider": target.providers,
        "min_runtime": [one.min_runtime for one in (target, *target.older)],
        "presets": list(target.presets),
        "activations": list(target.activations),
        "kv": ["float", *(["int8"] if target.int8_kv else [])],
        "operators": len(target.kernels),
        "experts": f"{target.experts}{reason}",
        "verified": target.verified,
    }


def kernel_rows(target: Target) -> list[dict[str, str]]:
    """Each operator of a target, with the element types and attributes its kernel takes."""
    return [
        {
            "operator": f"{domain or 'ai.onnx'}::{op}",
            "types": "/".join(sorted(kernel.dtypes)).lower(),
            "attributes": ", ".join(
                name if values is None else f"{name}={'|'.join(map(str, sorted(values)))}"
                for name, values in kernel.attributes.items()
            ),
        }
        for (domain, op), kernel in sorted(target.kernels.items())
    ]
