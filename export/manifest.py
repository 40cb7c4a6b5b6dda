"""manifest.json's content: what the package is, and each of its graphs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import onnx_ir as ir

from gptoss_onnx.export.plan import Plan, PlannedGraph, weight_bytes
from gptoss_onnx.graph_passes.attention_spec import is_fused


def manifest(made: Plan, name: str, tokenizer: dict[str, Any], links: list[str]) -> dict[str, Any]:
    """Everything but the files. The top level describes the first graph too, for every reader;
    a package of several lists them all in `graphs`, and its loaders choose."""
    checkpoint, options, spec = made.checkpoint, made.options, made.checkpoint.spec
    graphs = [_graph(made, graph) for graph in made.graphs]
    return {
        "name": name,
        "source": {
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "expert_format": checkpoint.expert_format,
        },
        "quant": options.quantization.name,
        "recipe": options.quantization.describe(),
        "rounding": {"method": options.rounding.method, "calibration": options.calibration},
        **graphs[0],
        "graphs": graphs if len(graphs) > 1 else [],
        "context_length": spec.max_position_embeddings,
        "vocab_size": spec.vocab_size,
        "weights": weight_bytes(made),
        "tokenizer": tokenizer,
        "links": links,
        "versions": {p: version(p) for p in ("onnx", "onnx-ir", "onnxruntime", "torch")},
    }


def _graph(made: Plan, planned: PlannedGraph) -> dict[str, Any]:
    """What a loader must know to choose a graph and to run it."""
    options, spec, target = made.options, made.checkpoint.spec, planned.target
    dtype = options.kv_dtype(target, planned.activations)
    return {
        "target": target.name,
        "min_runtime": target.min_runtime,
        "verified": target.verified,
        "graph": planned.file,
        "activations": planned.activations,
        "requires": planned.requires,
        "inputs": [_described(value) for value in planned.model.graph.inputs],
        "outputs": [_described(value) for value in planned.model.graph.outputs],
        "logits": "all" if options.all_logits else "last",
        "padded_batches": target.padded_batches,
        "kv": {
            "dtype": dtype,
            # A graph of standard operators makes the present anew at every run.
            "in_place": is_fused(spec.attention, target),
            "scales": _kv_scales(options.kv_calibration) if dtype == "int8" else None,
            "num_kv_heads": spec.num_kv_heads,
            "head_dim": spec.head_dim,
            "layers": [
                {"window": layer.window, "windowed": kept is not None}
                for layer, kept in zip(spec.attention, planned.kv_windows, strict=True)
            ],
        },
        "session": {
            "providers": target.providers,
            "provider_options": dict(target.provider_options),
            "config": dict(target.session_config),
        },
    }


def _kv_scales(calibration: Any) -> dict[str, Any]:
    """How int8 codes of the KV cache are scaled."""
    return {"per": "channel", "from": "largest magnitude", "calibration": calibration}


def _described(value: ir.Value) -> dict[str, Any]:
    shape = [d if isinstance(d, int) else str(d) for d in value.shape or ()]
    return {
        "name": value.name,
        "dtype": value.dtype.name.lower() if value.dtype else None,
        "shape": shape,
    }
