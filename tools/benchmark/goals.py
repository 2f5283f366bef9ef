"""What a GPU is to show: guided steps near the floor of arithmetic, recorded ones free of launches."""

from __future__ import annotations

from collections.abc import Sequence

from tools.benchmark.tables import Row, Timing

OVER_FLOOR = 1.05
"""Goal: guided / plain is at most this many times the floor."""
GRAPH_OVER_EAGER = 3.0
"""Goal: a recorded guided step is at least this many times as fast as the eager one, for the backbones below."""
BOUND_BY_LAUNCHES = ("skp", "deit")

HEADINGS = ["backbone", "batch", "labels", "precision", "executor", "guided / plain",
            f"over the floor (goal: at most {OVER_FLOOR})", "by hand / guided",
            f"eager / this (goal of graphs: {GRAPH_OVER_EAGER:g} for {', '.join(BOUND_BY_LAUNCHES)})"]  # fmt: skip


def goals_table(rows: Sequence[Row]) -> list[list[str]]:
    """Headings and a line for each row; both of a ratio's steps ran under the row's executor, but for the last's."""
    eager = {kind_of(row): row for row in rows if row.executor == "eager"}
    return [HEADINGS, *(cells(row, eager.get(kind_of(row))) for row in rows)]


def kind_of(row: Row) -> tuple[str, ...]:
    return row.backbone, row.shape, row.label, row.precision


def cells(row: Row, eager: Row | None) -> list[str]:
    ratio, hand = row.ratio("guided", "plain"), row.ratio("by hand", "guided")
    over = None if ratio is None else ratio / row.floor
    faster = None
    if eager is not None and row.executor != "eager":
        before, now = eager.times["guided"], row.times["guided"]
        if isinstance(before, Timing) and isinstance(now, Timing):
            faster = before.median / now.median
    graph_goal = row.executor.startswith("cuda_graph") and any(word in row.backbone for word in BOUND_BY_LAUNCHES)
    return [
        row.backbone,
        row.shape,
        row.label,
        row.precision,
        row.executor,
        number(ratio),
        judged(over, over is not None and over <= OVER_FLOOR),
        number(hand),
        judged(faster, faster is not None and faster >= GRAPH_OVER_EAGER) if graph_goal else number(faster),
    ]


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def judged(value: float | None, reached: bool) -> str:
    return "-" if value is None else f"{value:.2f}, {'reached' if reached else 'missed'}"
