"""README.md of a package: what it is, how to run it, what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.exporter import Plan


def model_card(made: Plan, manifest: dict[str, Any]) -> str:
    """Markdown; a figure nobody measured says so."""
    spec, source = made.checkpoint.spec, manifest["source"]
    formats = "\n".join(f"| {g} | {f} |" for g, f in manifest["recipe"].items())
    revision = f" at revision `{source['revision']}`" if source["revision"] else ""
    size = sum(tensor.nbytes for tensor in made.tensors)
    return f"""# {manifest["name"]}

{source["name"]}{revision}, exported to ONNX for the target `{manifest["target"]}`
with the preset `{manifest["quant"]}`. It runs on ONNX Runtime {manifest["min_runtime"]} or newer.

| | |
|---|---|
| weights | {size / 1e6:,.1f} MB |
| layers, experts, active | {spec.num_layers}, {spec.num_experts}, {spec.experts_per_token} |
| context | {spec.max_position_embeddings:,} tokens |
| logits | {manifest["logits"]} |
| KL divergence to the source | not measured |
| speed | not measured; `gptoss bench` on this folder measures it |

| tensors | format |
|---|---|
{formats}
| router, norms, sinks | fp32 |

## Run it

```
gptoss chat <this folder>
gptoss verify <this folder>
```

`manifest.json` has the size and SHA-256 of every file, the graph's inputs and outputs and the
layout of the KV cache. The licence is that of the checkpoint.
"""
