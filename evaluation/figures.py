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
_SAME = 1e-6  # nats: packages below this are full precision
_PANEL = (310.0, 230.0)  # of `presets`, about, in points
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
    with _drawing("divergence", 9, 2.8) as (figure, (axes,)):
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_BLUE)
        mean = float(np.log10(max(evaluation["all"]["kld"]["mean"], _LEAST)))
        axes.axvline(mean, color=_ORANGE, linewidth=2)
        axes.margins(y=0.15)
        beside = (-5, "right") if mean > edges.mean() else (5, "left")
        axes.annotate(
            "mean",
            (mean, 0.97),
            (beside[0], 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=beside[1],
            va="top",
        )
        ticks = np.arange(-8, 3, 2)
        axes.set_xticks(ticks, [f"1e{tick}" for tick in ticks])
        axes.set_xlabel("KL divergence of a token, nats")
        axes.set_ylabel("tokens")
        return figure()


def router_agreement(evaluation: Mapping[str, Any]) -> str:
    """Share of tokens that went to the same experts, by layer."""
    rows = evaluation["router_agreement"]
    means = np.array([row["mean"] for row in rows]) * 100
    bounds = np.array([row["ci"] for row in rows]).T * 100
    with _drawing("routers", 9, 2.6) as (figure, (axes,)):
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
    with _drawing("sensitivity", 10, height, 2) as (figure, panels):
        for axes, part in zip(panels, parts, strict=True):
            names = [f"{row['name']} ({row['format']})" for row in part]
            values = np.maximum([row["kld"] for row in part], _LEAST)
            spread = [np.abs(np.array(r["ci"]) - r["kld"]) for r in part]
            axes.barh(
                names, values, xerr=np.array(spread).T.reshape(2, -1), color=_BLUE, ecolor=_INK
            )
            axes.invert_yaxis()
            axes.set_xlim(left=0)
            axes.locator_params("x", nbins=4)
            axes.set_xlabel("KL divergence, nats")
        return figure()


def presets(evaluations: Sequence[Mapping[str, Any]], this: Mapping[str, Any] | None = None) -> str:
    """Quality over size, and over speed where it was measured; `this` one stands out."""
    timed = [one for one in evaluations if one.get("speed")]
    machines = {one["speed"]["machine"] for one in timed}
    with _drawing("presets", 10, 4, 2) as (figure, (size, speed)):
        _scatter(size, evaluations, [one["size_bytes"] / 1e6 for one in evaluations], this)
        size.set_xlabel("size, MB")
        size.set_ylabel("mean KL divergence, nats")
        rates = [one["speed"]["decode_tokens_per_second"] for one in timed]
        _scatter(speed, timed, rates, this)
        where = machines.pop() if len(machines) == 1 else "machines differ"
        speed.set_xlabel(f"decode, tokens/s ({where if timed else 'not measured'})")
        return figure()


def _scatter(
    axes: Axes,
    evaluations: Sequence[Mapping[str, Any]],
    places: Sequence[float],
    this: Mapping[str, Any] | None,
) -> None:
    """Points with 95 % intervals, each with its name where there is room for it."""
    means = [one["all"]["kld"]["mean"] for one in evaluations]
    apart = [mean for mean in means if mean > _SAME] or [1.0]
    # Full precision differs by rounding alone: it stands a decade below the best of the others.
    least = 10.0 ** (np.floor(np.log10(min(apart))) - 1)
    low, high, right = least / 2, 3 * max(apart), 1.3 * max(places, default=1)
    axes.set(yscale="log", ylim=(low, high), xlim=(0, right))
    decades = range(round(np.log10(least)), int(np.floor(np.log10(high))) + 1)
    named = [f"≤1e{d}" if 10.0**d == least else f"1e{d}" for d in decades]
    axes.set_yticks([10.0**d for d in decades], named)
    axes.minorticks_off()
    width, height = _PANEL
    points = [
        (x / right * width, np.log(max(mean, least) / low) / np.log(high / low) * height)
        for x, mean in zip(places, means, strict=True)
    ]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for one, place, (x, y) in sorted(
        zip(evaluations, places, points, strict=True), key=lambda entry: -entry[2][1]
    ):
        mean = max(one["all"]["kld"]["mean"], least)
        spread = np.abs(np.maximum(one["all"]["kld"]["ci"], least) - mean)[:, None]
        color, layer = (_ORANGE, 4) if one is this else (_BLUE, 3)
        axes.errorbar(place, mean, spread, fmt="o", ms=7, color=color, elinewidth=1, zorder=layer)
        dx, dy = _room(x, y, 5.5 * len(one["label"]), taken)
        far = {"arrowstyle": "-", "color": _INK, "alpha": 0.35, "linewidth": 0.7, "shrinkA": 0}
        axes.annotate(
            one["label"],
            (place, mean),
            (dx, dy),
            textcoords="offset points",
            va="center",
            fontsize=9,
            arrowprops=far if abs(dy) > 12 or dx > 9 else None,
        )


def _room(
    x: float, y: float, length: float, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """The least offset at which a name of `length` points covers nothing; it is then taken."""
    steps = [(8.0 + 14 * (abs(k) > 0), 11.0 * k) for k in range(-20, 21)]
    steps += [(-8 - length - 14 * (abs(k) > 0), 11.0 * k) for k in range(-20, 21)]
    for dx, dy in sorted(steps, key=lambda step: (abs(step[1]), -step[0])):
        left, low = x + dx, y + dy - 5
        right, high = left + length, low + 10
        inside = left > 0 and low > 0 and right < _PANEL[0] and high < _PANEL[1]
        if inside and all(right < a or left > c or high < b or low > d for a, b, c, d in taken):
            taken.append((left, low, right, high))
            return dx, dy
    return 8.0, 0.0


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
