"""The report of an evaluation: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jinja2

from gptoss_onnx.evaluation import figures


def render(package: str, evaluation: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """HTML of one package's figures; `others` are packages measured against the same reference."""
    shown = labelled([{**evaluation, "package": package}, *others])
    drawn = {
        "divergence": figures.divergence(evaluation),
        "routers": figures.router_agreement(evaluation),
        "presets": figures.presets(shown, shown[0]),
    }
    if evaluation.get("sensitivity"):
        drawn["sensitivity"] = figures.sensitivity(evaluation["sensitivity"])
    return template("report.html").render(
        package=package, e=evaluation, figures=drawn, verdict=verdict(evaluation), all=shown
    )


def labelled(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations with a `label`: the preset, or the package's name where two share a preset."""
    wanted = [_preset(one) or one["package"] for one in evaluations]
    count = Counter(wanted)
    labels = [
        label if count[label] == 1 else one["package"]
        for label, one in zip(wanted, evaluations, strict=True)
    ]
    return [
        {**one, "label": label if labels.count(label) == 1 else f"{label} ({one['method']})"}
        for label, one in zip(labels, evaluations, strict=True)
    ]


def _preset(evaluation: Mapping[str, Any]) -> str | None:
    plain = evaluation.get("preset_recipe", True) and evaluation.get("method") == "search"
    return str(evaluation["quant"]) if plain else None


def verdict(evaluation: Mapping[str, Any]) -> list[str]:
    """The figures in sentences, the conclusion first."""
    total = evaluation["all"]
    kld, agreement = total["kld"], evaluation["router_agreement"]
    least = min(agreement, key=lambda row: row["mean"])
    said = [
        f"{evaluation['quant']} keeps {_below_all(total['top1']['mean'])} of the source's first "
        f"choices; {_surprise(total['perplexity'])}.",
        f"Its next-token distribution is {kld['mean']:.2g} nats from the source's on average (95% "
        f"interval {kld['ci'][0]:.2g} to {kld['ci'][1]:.2g}); for one token in a thousand it is "
        f"more than {kld['p99.9']:.2g}.",
        "Its routers send every token to the source's experts."
        if least["mean"] == 1
        else f"In layer {least['layer']}, the least sure, its router sends "
        f"{_below_all(least['mean'])} of the tokens to the source's experts.",
    ]
    if asked := evaluation.get("generation"):
        said.append(
            f"Of {asked['questions']} questions it answers {asked['exact']['package']:.1%} word "
            f"for word (the source {asked['exact']['reference']:.1%}); "
            f"{asked['flips']['mean']:.1%} of its answers differ from the source's."
        )
    else:
        said.append("Whole answers were not measured.")
    return said


def _surprise(perplexity: Mapping[str, Any]) -> str:
    ratio, (low, high) = perplexity["ratio"], perplexity["ci"]
    if abs(ratio - 1) < 0.00005:
        return "text surprises it exactly as much"
    said = f"text is {ratio:.{3 if abs(ratio - 1) >= 0.0005 else 4}f} times as surprising to it"
    if low <= 1 <= high:
        return f"{said}, which may be chance"
    # Less surprise than the source is no gain: this text alone happens to suit the error.
    return said if ratio > 1 else f"{said}, a change like any other and not a gain"


def _below_all(share: float) -> str:
    """A share with as many digits as it takes not to round up to all of it."""
    if share == 1:
        return "100%"
    digits = next(d for d in (1, 2, 3, 12) if round(share * 100, d) < 100 or d == 12)
    return f"{share * 100:.{digits}f}%"


def _share(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}%}"


def _figure(value: float) -> str:
    """Three digits, a thousand and more in full."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _visible(token: str) -> str:
    """Spaces and line breaks as signs: a token may be nothing else."""
    return token.translate({ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥", ord("\r"): "␍"})


def _marked(token: str) -> str:
    """A token in its text: breaks as signs as well, and spaces where there is nothing else."""
    return token.replace("\n", "⏎\n") if token.strip() else _visible(token).replace("⏎", "⏎\n")


@cache
def template(name: str) -> jinja2.Template:
    """A page of ours; whatever it is given is escaped, text of tokens first of all."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gptoss_onnx.evaluation", "templates"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # what was not measured has no key
        trim_blocks=True,
    )
    forms = {
        "share": _share,
        "share1": lambda value: _share(value, 1),
        "figure": _figure,
        "ratio": "{:.4f}".format,
    }
    environment.filters |= {**forms, "visible": _visible, "marked": _marked}
    environment.globals |= forms
    return environment.get_template(name)
