"""The curve over alpha: a metric with the right and with wrong masks, above what there is without guidance."""

from __future__ import annotations

import base64
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; lines and markers differ as well.
STYLES: dict[str, dict[str, Any]] = {
    "provenance": {"label": "right mask", "color": "#0072B2", "marker": "o", "linestyle": "-"},
    "random": {"label": "random mask", "color": "#D55E00", "marker": "s", "linestyle": "--"},
    "none": {"label": "no mask", "color": "#000000", "marker": "^", "linestyle": ":"},
}
Curve = Mapping[str, Sequence[float]]
"""Values of each seed by alpha, as text."""


def draw_curves(
    curves: Mapping[str, Curve], baseline: Sequence[float], without: str, y_label: str,
    limits: tuple[float, float] | None = None,
) -> Figure:  # fmt: skip
    """Lines: means over the seeds; points: each seed; grey band: without guidance, from worst to best seed.

    Args:
        curves: by mask, one of `STYLES`.
        baseline: values of each seed at alpha 0; may be empty.
        without: what alpha 0 is called.
        limits: of the y axis; None: those of the values.
    """
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    if baseline:
        axis.axhspan(min(baseline), max(baseline), color="#999999", alpha=0.25, lw=0)
        axis.axhline(statistics.mean(baseline), color="#777777", lw=1.2, label=without)
    for mask, curve in curves.items():
        style, alphas, values = STYLES[mask], [float(alpha) for alpha in curve], list(curve.values())
        axis.plot(alphas, [statistics.mean(seeds) for seeds in values], lw=2, ms=7, **style)
        for alpha, seeds in zip(alphas, values, strict=True):
            axis.plot([alpha] * len(seeds), seeds, style["marker"], color=style["color"], ms=3.5, alpha=0.5)
    axis.set(xscale="log", xlabel="alpha", ylabel=y_label)
    if limits:
        axis.set_ylim(*limits)
    ticks = {alpha: float(alpha) for curve in curves.values() for alpha in curve}
    axis.set_xticks(list(ticks.values()), list(ticks))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    return figure


def picture(figure: Figure, caption: str) -> str:
    """A figure as HTML that loads nothing; closes the figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    plt.close(figure)
    data = base64.b64encode(content.getvalue()).decode()
    return f'<p><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></p>'
