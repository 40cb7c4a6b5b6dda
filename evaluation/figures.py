"""The report's figures, each as inline SVG that takes its text colour from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK = "#010203"  # stands for the page's text colour and is replaced by it
_BLUE, _ORANGE = "#4c86d8", "#e0803a"  # readable on light and dark
_LEAST = 1e-9  # nats: what is below is rounding
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "axes.axisbelow": True,
}


def divergence(evaluation: Mapping[str, Any]) -> str:
    """How many tokens diverged how much."""
    bins = evaluation["kld_histogram"]
    edges, counts = np.array(bins["edges"]), np.array(bins["counts"])
    with _drawing("divergence", 7, 2.8) as (figure, (axes,)):
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_BLUE)
        axes.axvline(np.log10(max(evaluation["all"]["kld"]["mean"], _LEAST)), color=_ORANGE)
        ticks = np.arange(-8, 3, 2)
        axes.set_xticks(ticks, [f"1e{tick}" for tick in ticks])
        axes.set_xlabel("KL divergence of a token, nats (the line is the mean)")
        axes.set_ylabel("tokens")
        return figure()


def router_agreement(evaluation: Mapping[str, Any]) -> str:
    """Share of tokens that went to the same experts, by layer."""
    rows = evaluation["router_agreement"]
    means = np.array([row["mean"] for row in rows]) * 100
    bounds = np.array([row["ci"] for row in rows]).T * 100
    with _drawing("routers", 7, 2.6) as (figure, (axes,)):
        layers = [row["layer"] for row in rows]
        spread = np.abs(bounds - means)
        axes.errorbar(layers, means, spread, fmt="o-", color=_BLUE, ecolor=_INK, elinewidth=0.8)
        axes.set_ylim(top=100.05 + 0.03 * (100 - min(means.min(), 99.9)))
        axes.set_xticks(layers if len(layers) < 30 else layers[::4])
        axes.set_xlabel("layer")
        axes.set_ylabel("same experts, %")
        return figure()


def sensitivity(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each group of tensors and each layer costs by itself."""
    parts = [[r for r in rows if r["what"] == what] for what in ("group", "layer")]
    height = 0.8 + 0.28 * max(len(part) for part in parts)
    with _drawing("sensitivity", 9, height, 2) as (figure, panels):
        for axes, part in zip(panels, parts, strict=True):
            names = [f"{row['name']} ({row['format']})" for row in part]
            values = np.maximum([row["kld"] for row in part], _LEAST)
            spread = [np.abs(np.array(r["ci"]) - r["kld"]) for r in part]
            axes.barh(names, values, xerr=np.array(spread).T.reshape(2, -1), color=_BLUE)
            axes.invert_yaxis()
            axes.set_xlabel("KL divergence, nats")
        return figure()


def presets(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Quality over size, and over speed where it was measured, of every package."""
    with _drawing("presets", 9, 3.4, 2) as (figure, (size, speed)):
        for place, one in enumerate(evaluations):
            mean = max(one["all"]["kld"]["mean"], _LEAST)
            color = _ORANGE if place == 0 else _BLUE
            _point(size, one["size_bytes"] / 1e6, mean, one["label"], color)
            if rate := one.get("speed", {}).get("decode_tokens_per_second"):
                _point(speed, rate, mean, one["label"], color)
        size.set_xlabel("size, MB")
        size.set_ylabel("mean KL divergence, nats")
        speed.set_xlabel("decode, tokens/s on this machine")
        for axes in (size, speed):
            axes.set_yscale("log")
            axes.margins(0.25, 0.2)
        return figure()


def _point(axes: Axes, x: float, y: float, label: str, color: str) -> None:
    axes.scatter([x], [y], s=60, color=color, zorder=3)
    axes.annotate(label, (x, y), (6, 5), textcoords="offset points", fontsize=9)


class _drawing:
    """A figure's panels, and the function that ends it as SVG."""

    def __init__(self, name: str, width: float, height: float, panels: int = 1) -> None:
        self._name = name
        self._style = matplotlib.rc_context({**_STYLE, "svg.hashsalt": name})
        self._size, self._panels = (width, height), panels

    def __enter__(self) -> tuple[Callable[[], str], tuple[Axes, ...]]:
        self._style.__enter__()
        self._figure = Figure(figsize=self._size, layout="constrained")
        axes = self._figure.subplots(1, self._panels, squeeze=False)[0]
        return self._svg, tuple(axes)

    def __exit__(self, *failure: Any) -> None:
        self._style.__exit__(*failure)

    def _svg(self) -> str:
        out = io.StringIO()
        self._figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        text = out.getvalue()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
        text = text.replace(_INK, "currentColor")
        # Ids are the page's: two figures must not share them.
        text = re.sub(r'id="([^"]+)"', rf'id="{self._name}-\1"', text)
        text = re.sub(r"url\(#([^)]+)\)", rf"url(#{self._name}-\1)", text)
        return re.sub(r'href="#([^"]+)"', rf'href="#{self._name}-\1"', text)
