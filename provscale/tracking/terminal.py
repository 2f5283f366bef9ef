"""The terminal: messages, and the progress of training."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from provscale.tracking.base import Tracker

console = Console(stderr=True, soft_wrap=True)


class ProgressBar(Tracker):
    """Loss parts, throughput and remaining time: a bar on a terminal, a line every 15 s elsewhere."""

    every_step = True

    def __init__(self, total: int, done: int) -> None:
        """`total` and `done`: optimizer steps of the whole training, and before this process."""
        self.total = total
        self.bar: Progress | None = None
        self.last_line = 0.0
        self.start, self.first = time.monotonic(), done
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self.bar.start()
            self.task = self.bar.add_task("training", total=total, completed=done)

    def log(self, kind: str, row: dict[str, Any], step: int) -> None:
        if kind != "train":
            return
        text = f"epoch {row['epoch']}  {losses_text(row)}  {row['samples_per_second']:.1f} samples/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=text)
        elif time.monotonic() - self.last_line > 15 or step == self.total:
            self.last_line = time.monotonic()
            pace = (self.last_line - self.start) / max(step - self.first, 1)
            console.print(f"step {step}/{self.total}  {text}  {pace * (self.total - step):.0f} s left", highlight=False)

    def close(self, failed: bool) -> None:
        if self.bar is not None:
            self.bar.stop()


def losses_text(row: dict[str, Any]) -> str:
    """The loss and what it is the sum of, e.g. `loss 1.3 = cls 1.0 + alpha x guidance 2.0 + area 0.1`."""
    parts = {name.removeprefix("loss_"): value for name, value in row.items() if name.startswith("loss_")}
    factor = {"guidance": "alpha x "}  # the only loss that a row has without its weight
    terms = [f"{factor.get(name, '')}{name} {value:.4f}" for name, value in parts.items()]
    return f"loss {row['loss']:.4f} = {' + '.join(terms)}"
