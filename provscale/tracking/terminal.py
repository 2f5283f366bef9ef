"""The terminal: messages, and the progress of training."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, soft_wrap=True)


class ProgressBar:
    """Loss parts, throughput and remaining time: a bar on a terminal, a line every 15 s elsewhere."""

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self.enabled, self.total = enabled, total
        self.bar: Progress | None = None
        self.last_line = 0.0
        self.start, self.first = time.monotonic(), done
        if enabled and sys.stderr.isatty():
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

    def show(self, step: int, row: dict[str, Any]) -> None:
        if not self.enabled:
            return
        text = (
            f"epoch {row['epoch']}  loss {row['loss']:.4f} = cls {row['loss_cls']:.4f} + alpha x guidance "
            f"{row['loss_guidance']:.4f}  {row['samples_per_second']:.1f} samples/s"
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=text)
        elif time.monotonic() - self.last_line > 15 or step == self.total:
            self.last_line = time.monotonic()
            pace = (self.last_line - self.start) / max(step - self.first, 1)
            console.print(f"step {step}/{self.total}  {text}  {pace * (self.total - step):.0f} s left", highlight=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
