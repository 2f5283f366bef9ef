"""Charts of a report, as SVG whose colours the page's style sheet decides."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

# Colours that stand for the page's: text, lines, and those of the runs.
TEXT, GRID = "#010101", "#020202"
COLOURS = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
# Runs differ by dashes as well as by colour; each pattern is in units of the line's width.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1), (6, 1.5, 1.5, 1.5))
POINTS = 100
SETTINGS = {
    "svg.fonttype": "none", "svg.hashsalt": "provscale", "font.size": 8.5,
    "text.color": TEXT, "axes.labelcolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT,
    "axes.edgecolor": GRID, "grid.color": GRID, "axes.grid": True, "grid.linewidth": 0.4,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
}  # fmt: skip


@dataclass
class Series:
    """One run's points in a chart.

    Attributes:
        run: the run's number, which decides colour and dashes.
        x, y: the curve.
        ring: x of the point to mark with a ring, or None.
        diamonds: points beside the curve, as (x, y).
    """

    run: int
    x: Sequence[float]
    y: Sequence[float]
    ring: float | None = None
    diamonds: list[tuple[float, float]] = field(default_factory=list)


def chart(series: Sequence[Series], x_label: str, label: str) -> str:
    """An `<svg>` element. The y axis is logarithmic where all values are positive and span a factor of 30 or more.

    Args:
        label: what a screen reader says.
    """
    with mpl.rc_context(SETTINGS):  # type: ignore[arg-type]  # its keys are literals
        figure, axis = plt.subplots(figsize=(3.7, 2.3), layout="constrained")
        for one in series:
            colour, dashes = COLOURS[one.run % len(COLOURS)], DASHES[one.run % len(DASHES)]
            x, y = binned(one.x, one.y)
            axis.plot(x, y, color=colour, lw=1.6, dashes=dashes, marker="." if len(x) == 1 else "")
            for at, value in zip(one.x, one.y, strict=True):
                if at == one.ring:
                    axis.plot([at], [value], "o", ms=7, mew=1.6, color=colour, mfc="none")
            for at, value in one.diamonds:
                axis.plot([at], [value], "D", ms=5, color=colour)
        values = np.array([value for one in series for value in one.y])
        values = values[np.isfinite(values)]
        if len(values) and values.min() > 0 and values.max() >= 30 * values.min():
            axis.set_yscale("log")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel(x_label)
        content = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
        plt.close(figure)
    return for_page(content.getvalue(), label)


def binned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of so many neighbouring points that at most `POINTS` are left."""
    size = max(-(-len(x) // POINTS), 1)
    starts = range(0, len(x), size)
    return [float(np.mean(x[s : s + size])) for s in starts], [float(np.mean(y[s : s + size])) for s in starts]


def for_page(svg: str, label: str) -> str:
    """Makes a file of Matplotlib's an element of the page: in its width, its font and its colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # the same in every chart
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--run{number})")
    svg = svg.replace(TEXT, "currentColor").replace(GRID, "var(--line)")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def swatch(run: int) -> str:
    """The line of a run, for a legend."""
    dashes = " ".join(f"{3 * length:g}" for length in DASHES[run % len(DASHES)]) or "none"
    return (
        '<svg class="swatch" viewBox="0 0 36 8" aria-hidden="true"><path d="M0 4H36" fill="none" stroke-width="3" '
        f'stroke="var(--run{run % len(COLOURS)})" stroke-dasharray="{dashes}"/></svg>'
    )
