"""int4 or mxfp4 for a checkpoint whose experts are MXFP4: facts first, then one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptoss_onnx.evaluation.reference import Reference
from gptoss_onnx.graph_passes.quantization import FP32, Quantization
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST, Manifest
from gptoss_onnx.runtimes.target import Target, known_target

# Bits a weight, scales included: MXFP4 has a byte for 32 weights, int4 a float32 a block.
_MXFP4_BITS = 4.25


def recommend(
    target: Target,
    expert_format: str | None,
    quantization: Quantization,
    results: Iterable[Mapping[str, Any]] = (),
) -> str | None:
    """How 4-bit integer experts compare with the checkpoint's own MXFP4, and the better one here.

    `results` are figures of packages measured against one reference, this one's last. None where
    the question does not arise: experts that are not MXFP4 or not rounded to 4 bits.
    """
    experts = quantization.of("experts")
    if expert_format != "mxfp4" or (experts.kind, experts.bits) != ("int", 4):
        return None
    if "mxfp4" not in target.presets:
        return f"int4: {target.name} does not run mxfp4"
    bits = experts.bits + FP32.bits / experts.block
    facts = [
        f"mxfp4 keeps the experts exactly in {_MXFP4_BITS} bits a weight, "
        f"{experts} takes {bits:.4g}"
    ]
    measured: dict[str, Mapping[str, Any]] = {one["quant"]: one for one in results}
    if {"int4", "mxfp4"} <= measured.keys():
        figures = [
            f"{name} {measured[name]['all']['kld']['mean']:.2g} nats"
            f", {measured[name]['size_bytes'] / 1e6:,.4g} MB"
            for name in ("int4", "mxfp4")
        ]
        facts.append(f"measured: {'; '.join(figures)}")
    slow = target.slow_here("mxfp4")
    if slow is not None:
        return f"int4 here: mxfp4 has no fast kernel on this processor; {'; '.join(facts)}"
    return f"mxfp4: {'; '.join(facts)}"


def recommendation(
    package: Path, expert_format: str | None, figures: Mapping[str, Any], expected: Reference
) -> str | None:
    """`recommend` for an evaluated package, by what is measured against the same reference.

    None too for a target or a preset that are not known here: what was measured stands without.
    """
    manifest = Manifest.load(package)
    target = known_target(manifest.target, manifest.min_runtime)
    try:
        where = package / MANIFEST
        quantization = Quantization.recorded(manifest.quant, manifest.recipe, where)
    except UserError:
        return None
    if target is None:
        return None
    kept = sorted(expected.results.glob("*.json"))
    others = [json.loads(path.read_text(encoding="utf-8")) for path in kept]
    same_kv = [one for one in others if one.get("kv") == figures.get("kv")]
    return recommend(target, expert_format, quantization, [*same_kv, figures])
