"""README.md of a package: what it is, how to run it, what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_onnx.export.plan import Plan


def model_card(made: Plan, manifest: dict[str, Any]) -> str:
    """Markdown; a figure nobody measured says so."""
    spec, source = made.checkpoint.spec, manifest["source"]
    formats = "\n".join(f"| {g} | {f} |" for g, f in manifest["recipe"].items())
    revision = f" at revision `{source['revision']}`" if source["revision"] else ""
    size = sum(tensor.nbytes for tensor in made.tensors)
    return f"""# {manifest["name"]}

{source["name"]}{revision}, exported to ONNX for the target `{manifest["target"]}`
with the preset `{manifest["quant"]}`. It runs on ONNX Runtime {manifest["min_runtime"]} or newer.
{_graphs(manifest)}
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


def _graphs(manifest: Mapping[str, Any]) -> str:
    """How packages like this were checked; of several graphs, what each is for."""
    if not manifest["graphs"]:
        return f"How packages for it were checked: {manifest['verified']}.\n"
    rows = (
        f"| `{graph['graph']}` | {graph['target']}, {graph['activations']} "
        f"| {graph['min_runtime']} | {graph['verified']} |\n"
        for graph in manifest["graphs"]
    )
    head = "\n| graph | for | ONNX Runtime | how such packages were checked |\n|---|---|---|---|\n"
    return head + "".join(rows)


def measured(card: str, evaluation: Mapping[str, Any]) -> str:
    """A package's card with the figures of an evaluation in its table, 95 % intervals beside."""
    total, asked = evaluation["all"], evaluation.get("generation")
    kld, top1, perplexity = (total[name] for name in ("kld", "top1", "perplexity"))
    rows = {
        "KL divergence to the source": f"{kld['mean']:.3g} nats "
        f"{_between(kld['ci'], '{:.3g}'.format)} "
        f"over {total['tokens']:,} tokens of {evaluation['text']['name']}",
        "top-1 agreement": f"{top1['mean']:.2%} {_between(top1['ci'], '{:.2%}'.format)}",
        "perplexity, to the source's": f"{perplexity['ratio']:.4f} "
        f"{_between(perplexity['ci'], '{:.4f}'.format)}",
    }
    if asked:
        exact = asked["exact"]
        rows["exact answers"] = (
            f"{exact['package']:.1%} {_between(exact['ci'], '{:.1%}'.format)} "
            f"of {asked['questions']}; the source {exact['reference']:.1%}"
        )
    if speed := evaluation.get("speed"):
        rows["decode"] = f"{speed['decode_tokens_per_second']:.0f} tokens/s, {speed['machine']}"
    lines = []
    for line in card.split("\n"):
        label = line.split(" | ")[0].removeprefix("| ")
        lines.append(f"| {label} | {rows[label]} |" if label in rows else line)
    return "\n".join(lines)


def _between(ci: Sequence[float], form: Callable[[float], str]) -> str:
    return f"({form(ci[0])} to {form(ci[1])})"


def unmeasured_page(manifest: Mapping[str, Any]) -> str:
    """The report.html of a package that nobody has evaluated; an evaluation replaces it."""
    name, source = escape(manifest["name"]), escape(manifest["source"]["name"])
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: not measured</title>
<style>
:root {{ color-scheme: light dark }}
body {{ max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.5rem }}
body {{ font: 16px/1.55 system-ui, sans-serif }}
pre {{ font: .95rem ui-monospace, monospace; white-space: pre-wrap }}
</style>
<h1>{name}</h1>
<p>{escape(manifest["quant"])} of {source}. Nothing has been measured yet.</p>
<p>This compares it with the full-precision model and writes its figures here:</p>
<pre>gptoss eval &lt;this folder&gt; --against &lt;the checkpoint&gt;</pre>
</html>
"""
