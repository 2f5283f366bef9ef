"""What the benchmark shows: rows of times, as a table on the terminal, as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass
class Timing:
    """Milliseconds of one step: median, and the middle half of the rounds; peak bytes on CUDA, else None."""

    median: float
    low: float
    high: float
    peak_bytes: int | None


@dataclass
class Row:
    """Times of one case, label kind and executor; ratios are of medians."""

    backbone: str
    batch: int
    size: int
    label: str
    executor: str
    precision: str
    floor: float
    times: dict[str, Timing] = field(default_factory=dict)

    def ratio(self, above: str, below: str) -> float:
        return self.times[above].median / self.times[below].median


HEADINGS = ("backbone", "batch", "labels", "executor", "plain eager, ms", "plain, ms", "guided, ms", "by hand, ms",
            "guided / plain", "guided / plain eager", "guided / by hand", "floor", "peak, MiB")  # fmt: skip


def cells(row: Row) -> list[str]:
    def text(timing: Timing) -> str:
        return f"{timing.median:.4g} ({timing.low:.4g}-{timing.high:.4g})"

    peak = row.times["guided"].peak_bytes
    return [
        row.backbone,
        f"{row.batch} x {row.size} px",
        row.label,
        row.executor if row.precision == "no" else f"{row.executor}, {row.precision}",
        *(text(row.times[name]) for name in ("plain eager", "plain", "guided", "by hand")),
        *(f"{row.ratio('guided', below):.2f}" for below in ("plain", "plain eager", "by hand")),
        f"{row.floor:.1f}",
        "-" if peak is None else f"{peak / 2**20:.0f}",
    ]


def show(rows: Sequence[Row]) -> None:
    table = Table(title="median of a step (middle half of the rounds)")
    for heading in HEADINGS:
        table.add_column(heading)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=200).print(table)


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    note = (
        f"{about['device']}, {about['threads']} thread(s), torch {about['torch']}, {about['date']}; {about['clock']}."
    )
    return "\n".join([*lines, "", note])


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars: guided and hand-written step as multiples of a plain eager step; a line at the floor."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.55 * len(rows) + 1.2), layout="constrained")
    for place, row in enumerate(rows):
        plain = row.times["plain eager"].median
        guided = row.times["guided"]
        spread = [[(guided.median - guided.low) / plain], [(guided.high - guided.median) / plain]]
        axes.barh(place - 0.2, row.ratio("guided", "plain eager"), 0.38, xerr=spread, color="#3b6fb6")
        axes.barh(place + 0.2, row.ratio("by hand", "plain eager"), 0.38, color="#c9c9c9")
        axes.plot([row.floor] * 2, [place - 0.45, place + 0.45], color="#c0392b", linewidth=2)
    axes.set_yticks(range(len(rows)), [f"{row.backbone}\n{row.label}, {row.executor}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time of a step / time of a plain eager step (blue: guided, grey: by hand, red: floor)")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
