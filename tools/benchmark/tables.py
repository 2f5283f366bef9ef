"""What the benchmark shows: rows of times, as a table on the terminal, as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from provscale.files import markdown_table


@dataclass
class Timing:
    """Milliseconds of one step: median, and the middle half of the rounds."""

    median: float
    low: float
    high: float


@dataclass
class Row:
    """Times of one case, label kind, engine (empty: the bare step) and executor; ratios are of medians.

    A text in the place of a time says why there is none.
    """

    backbone: str
    shape: str
    label: str
    engine: str
    executor: str
    precision: str
    floor: float
    times: dict[str, Timing | str] = field(default_factory=dict)

    def ratio(self, above: str, below: str) -> float | None:
        first, second = self.times[above], self.times[below]
        if isinstance(first, str) or isinstance(second, str):
            return None
        return first.median / second.median


HEADINGS = ("backbone", "batch", "labels", "engine", "executor", "plain eager, ms", "plain, ms", "guided, ms",
            "by hand, ms", "guided / plain", "guided / plain eager", "guided / by hand", "floor")  # fmt: skip


ENGINE = HEADINGS.index("engine")


def cells(row: Row) -> list[str]:
    def text(timing: Timing | str) -> str:
        return timing if isinstance(timing, str) else f"{timing.median:.4g} ({timing.low:.4g}-{timing.high:.4g})"

    ratios = [row.ratio("guided", below) for below in ("plain", "plain eager", "by hand")]
    return [
        row.backbone,
        row.shape,
        row.label,
        row.engine or "-",
        row.executor if row.precision == "no" else f"{row.executor}, {row.precision}",
        *(text(row.times[name]) for name in ("plain eager", "plain", "guided", "by hand")),
        *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        f"{row.floor:.3g}",
    ]


def times_table(rows: Sequence[Row]) -> list[list[str]]:
    """Headings and cells; without the column of engines where there are none."""
    table = [list(HEADINGS), *(cells(row) for row in rows)]
    if not any(row.engine for row in rows):
        table = [line[:ENGINE] + line[ENGINE + 1 :] for line in table]
    return table


def show(table: Sequence[Sequence[str]]) -> None:
    """Prints a table whose first line are its headings."""
    printed = Table()
    for heading in table[0]:
        printed.add_column(heading)
    for line in table[1:]:
        printed.add_row(*line)
    Console(width=220).print(printed)


def markdown(table: Sequence[Sequence[str]], about: dict[str, Any]) -> str:
    """The same as Markdown, with a line about the machine."""
    note = (
        f"{about['device']}, {about['threads']} thread(s), torch {about['torch']}, {about['date']}; {about['clock']}."
    )
    return "\n".join([markdown_table(table), "", note])


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars: guided and hand-written step as multiples of a plain eager step; a line at the floor."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.55 * len(rows) + 1.2), layout="constrained")
    for place, row in enumerate(rows):
        for shift, arm, colour in ((-0.2, "guided", "#3b6fb6"), (0.2, "by hand", "#c9c9c9")):
            ratio, timing = row.ratio(arm, "plain eager"), row.times[arm]
            if ratio is None or isinstance(timing, str):
                continue
            scale = ratio / timing.median
            spread = [[scale * (timing.median - timing.low)], [scale * (timing.high - timing.median)]]
            axes.barh(place + shift, ratio, 0.38, xerr=spread, color=colour)
        axes.plot([row.floor] * 2, [place - 0.45, place + 0.45], color="#c0392b", linewidth=2)
    axes.set_yticks(range(len(rows)), [f"{row.backbone}\n{row.label}, {row.executor}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time of a step / time of a plain eager step (blue: guided, grey: by hand, red: floor)")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
