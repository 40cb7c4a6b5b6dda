"""README.md of a package: what it is, how to run it, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
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
| top-1 agreement | not measured |
| perplexity, to the source's | not measured |
| exact answers | not measured |
| decode | not measured |

| tensors | format |
|---|---|
{formats}
| router, norms, sinks | fp32 |

## Run it

```
gptoss chat <this folder>
gptoss verify <this folder>
gptoss eval <this folder> --against <the checkpoint>
```

`manifest.json` has the size and SHA-256 of every file, the graph's inputs and outputs and the
layout of the KV cache. The licence is that of the checkpoint.
"""


def measured(card: str, evaluation: Mapping[str, Any]) -> str:
    """A package's card with the figures of an evaluation in its table."""
    total, asked = evaluation["all"], evaluation.get("generation")
    low, high = total["kld"]["ci"]
    rows = {
        "KL divergence to the source": f"{total['kld']['mean']:.3g} nats ({low:.2g} to {high:.2g}) "
        f"over {total['tokens']:,} tokens of {evaluation['text']['name']}",
        "top-1 agreement": f"{total['top1']['mean']:.2%}",
        "perplexity, to the source's": f"{total['perplexity']['ratio']:.4f}",
    }
    if asked:
        rows["exact answers"] = (
            f"{asked['exact']['package']:.1%} of {asked['questions']} "
            f"(source {asked['exact']['reference']:.1%})"
        )
    if speed := evaluation.get("speed"):
        rows["decode"] = f"{speed['decode_tokens_per_second']:.0f} tokens/s, {speed['machine']}"
    lines = []
    for line in card.split("\n"):
        label = line.split(" | ")[0].removeprefix("| ")
        lines.append(f"| {label} | {rows[label]} |" if label in rows else line)
    return "\n".join(lines)
