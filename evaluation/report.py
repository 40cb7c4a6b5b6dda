"""The report of an evaluation: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jinja2

from evaluation import figures


def render(package: str, evaluation: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """HTML of one package's figures; `others` are packages measured against the same reference."""
    shown = [{**evaluation, "label": label(package, evaluation)}]
    shown += [{**other, "label": label(other["package"], other)} for other in others]
    drawn = {
        "divergence": figures.divergence(evaluation),
        "routers": figures.router_agreement(evaluation),
        "presets": figures.presets(shown),
    }
    if evaluation.get("sensitivity"):
        drawn["sensitivity"] = figures.sensitivity(evaluation["sensitivity"])
    return _template().render(
        package=package, e=evaluation, figures=drawn, verdict=verdict(evaluation), all=shown
    )


def label(package: str, evaluation: Mapping[str, Any]) -> str:
    """A package's preset, or its name where its recipe is not the preset's own."""
    plain = evaluation.get("preset_recipe", True) and evaluation.get("method") == "search"
    return str(evaluation["quant"] if plain else package)


def verdict(evaluation: Mapping[str, Any]) -> list[str]:
    """The figures in sentences."""
    total = evaluation["all"]
    ratio, kld = total["perplexity"]["ratio"], total["kld"]
    surprise = (
        "text surprises it as much as the source"
        if abs(ratio - 1) < 0.0005
        else f"text surprises it {abs(ratio - 1):.1%} {'more' if ratio > 1 else 'less'} "
        "than the source"
    )
    said = [
        f"It agrees with full precision on the most likely token in {total['top1']['mean']:.2%} "
        f"of {total['tokens']:,} places, and {surprise}.",
        f"Its distribution is {kld['mean']:.2g} nats from the source's on average "
        f"(95 % interval {kld['ci'][0]:.2g} to {kld['ci'][1]:.2g}); one place in a thousand is "
        f"beyond {kld['p99.9']:.2g}.",
    ]
    agreement = evaluation["router_agreement"]
    least = min(agreement, key=lambda row: row["mean"])
    said.append(
        f"Its routers choose the same experts for {least['mean']:.2%} of the tokens or more; "
        f"layer {least['layer']} is the least sure."
    )
    if asked := evaluation.get("generation"):
        said.append(
            f"Of {asked['questions']} questions it answers {asked['exact']['package']:.1%} word "
            f"for word (the source {asked['exact']['reference']:.1%}); "
            f"{asked['flips']['mean']:.1%} of its answers differ from the source's."
        )
    return said


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("evaluation", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["share"] = lambda value, digits=2: f"{value:.{digits}%}"
    environment.filters["figure"] = lambda value: f"{value:.3g}"
    return environment.get_template("report.html")
