"""metrics.jsonl: the rows that every report is made from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from provscale.errors import UserError
from provscale.files import write_atomically


class MetricsFile:
    """metrics.jsonl: one JSON object per line, neither gap nor duplicate after a resume."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Keeps the rows up to `resume_step`, which the checkpoint knows of; later ones will be computed again, and so
        will the test metrics, which a run has at its end."""
        rows = [row for row in read_metrics(path) if row["step"] <= resume_step and row.get("kind") != "test"]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        self.path = path
        self.file = path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        """Raises UserError when the disk is full."""
        try:
            self.file.write((json.dumps(row) + "\n").encode())
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); free space and start again with "
                "checkpoint.resume auto"
            ) from None

    def sync(self) -> None:
        """Rows up to here survive a power cut; a checkpoint relies on those before it."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


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
