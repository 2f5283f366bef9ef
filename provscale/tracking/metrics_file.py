"""metrics.jsonl: the rows that every report is made from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provscale.errors import UserError
from provscale.files import write_atomically
from provscale.tracking.base import TrackedRun, Tracker

NAME = "metrics.jsonl"


class MetricsFile(Tracker):
    """One JSON object per line, neither gap nor duplicate after a resume. `log` and `sync` raise UserError when the
    disk is full."""

    required = True

    def __init__(self, path: Path, resume_step: int) -> None:
        """Keeps the rows up to `resume_step`, which the checkpoint knows of; later ones will be computed again, and so
        will the test metrics, which a run has at its end."""
        rows = [row for row in read_metrics(path) if row["step"] <= resume_step and row.get("kind") != "test"]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        self.path = path
        self.file = path.open("ab", buffering=0)

    def log(self, kind: str, row: dict[str, Any], step: int) -> None:
        with self.refusal():
            self.file.write((json.dumps(row) + "\n").encode())

    def sync(self) -> None:
        with self.refusal():
            os.fsync(self.file.fileno())

    def close(self, failed: bool) -> None:
        self.file.close()

    @contextmanager
    def refusal(self) -> Iterator[None]:
        """Turns what the operating system says into one line."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); free space and start again with "
                "checkpoint.resume auto"
            ) from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut off by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def rows_after(step: int, run: TrackedRun) -> list[dict[str, Any]]:
    """The rows above `step` and up to where training starts: what a tracker lacks that has recorded up to `step`."""
    return [row for row in read_metrics(run.config.folder / NAME) if step < row["step"] <= run.step]
