"""What the loader's benchmark shows: speeds of loaders side by side, as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tools.benchmark.images import HEIGHT, WIDTH

LOADERS = ("provscale", "timm", "timm, prefetcher")


@dataclass
class Speed:
    """Samples per second: median, minimum and maximum of the rounds."""

    median: float
    low: float
    high: float


@dataclass
class Row:
    """One loader in one case."""

    case: str
    workers: int
    loader: str
    cpu: Speed
    wall: Speed


def markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """Two tables: the loaders side by side, and what a sample of each kind costs."""
    lines = [
        "| transforms | workers | " + " | ".join(f"{name}, images/CPU s" for name in LOADERS)
        + " | provscale / better timm | images/s of wall time: " + " | ".join(LOADERS) + " |",
        "|---|---|" + "---|" * (2 * len(LOADERS) + 1),
    ]  # fmt: skip
    cases: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row.case, row.workers), {})[row.loader] = row
    for (case, workers), found in cases.items():
        if case == "kinds":
            continue
        cells = [text(found[name].cpu) for name in LOADERS]
        ratio = found["provscale"].cpu.median / max(found[name].cpu.median for name in LOADERS[1:])
        wall = [f"{found[name].wall.median:.0f}" for name in LOADERS]
        lines.append("| " + " | ".join([case, str(workers), *cells, f"{ratio:.2f}", *wall]) + " |")
    lines += ["", "| a sample for training, no workers | CPU ms |", "|---|---|"]
    for name, row in cases[("kinds", 0)].items():
        lines.append(f"| {name} | {1e3 / row.cpu.median:.2f} ({1e3 / row.cpu.high:.2f}-{1e3 / row.cpu.low:.2f}) |")
    return "\n".join([*lines, "", note(about)])


def text(speed: Speed) -> str:
    return f"{speed.median:.0f} ({speed.low:.0f}-{speed.high:.0f})"


def note(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"Median of {about['rounds']} rounds (lowest-highest); {about['images']} JPEGs of {WIDTH} x {HEIGHT}, "
        f"{about['kilobytes']:.0f} kB each, to {about['size']} px, batches of {about['batch']}, {about['epochs']} "
        f"epochs a round; evaluation pixels differ by at most {about['pixel_difference']:.2f} of 255. {about['cpu']}, "
        f"{about['cores']} cores, {about['date']}; {versions}."
    )
