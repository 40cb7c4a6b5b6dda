"""A loaded graph held to its manifest: buffers are made and filled by what the manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST, Manifest

_DTYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "int8": "int8"}


def check_graph(graph: Any, manifest: Manifest, folder: Path) -> None:
    """UserError names the manifest's field that the graph's inputs and outputs contradict."""
    inputs = {value.name: value for value in graph.get_inputs()}
    outputs = {value.name: value for value in graph.get_outputs()}
    where = folder / MANIFEST

    def require(field: str, said: Any, found: Any) -> None:
        if said != found:
            raise UserError(
                f"{where}: {field} is {said}, but {manifest.graph} has {found}; "
                "export or copy the package again"
            )

    wanted_in, wanted_out = {"input_ids", "attention_mask"}, {"logits"}
    for layer in range(len(manifest.kv.layers)):
        for part in ("key", "value"):
            wanted_in.add(f"past_key_values.{layer}.{part}")
            wanted_out.add(f"present.{layer}.{part}")
    layers = sum(name.startswith("past_key_values.") for name in inputs) // 2
    require("the number of kv.layers", len(manifest.kv.layers), layers)
    for kind, wanted, there in (("inputs", wanted_in, inputs), ("outputs", wanted_out, outputs)):
        if missing := sorted(wanted - set(there)):
            raise UserError(
                f"{folder / manifest.graph}: has no {missing[0]} among its {kind}; it is no graph "
                "of a GPT-OSS package"
            )
    require("vocab_size", manifest.vocab_size, _length(outputs["logits"], 2, manifest.vocab_size))
    for name in sorted(wanted_in - {"input_ids", "attention_mask"}):
        past, kv = inputs[name], manifest.kv
        require("kv.dtype", f"tensor({_DTYPES[kv.dtype]})", past.type)
        require("kv.num_kv_heads", kv.num_kv_heads, _length(past, 1, kv.num_kv_heads))
        require("kv.head_dim", kv.head_dim, _length(past, 3, kv.head_dim))


def _length(value: Any, place: int, unnamed: int) -> Any:
    """A tensor's length along a dimension; `unnamed` where the graph leaves it open."""
    if len(value.shape) <= place:
        return f"a tensor of {len(value.shape)} dimensions"
    found = value.shape[place]
    return found if isinstance(found, int) else unnamed
