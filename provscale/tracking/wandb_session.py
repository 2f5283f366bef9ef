"""Keeps a W&B run without gap or duplicate when a process was killed: neither W&B nor SLURM does.

W&B's helper process holds back up to 32 KiB of rows and dies of the SIGTERM that SLURM sends to every process of a job;
after a kill of the training alone it does write them, also those after the checkpoint. So a session that was not closed
is thrown away if it was recorded offline, and its rows are recorded again from metrics.jsonl.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from provscale.files import write_atomically


class WandbSession:
    """One process's part of a W&B run.

    Args:
        folder: the run folder; W&B's own lie in <folder>/wandb.
        step: the step that training starts at.

    Attributes:
        first_step: rows after this step belong to this session; below `step` where a lost session is replaced.
        tested_step: the step whose test rows W&B has, of this session or one before it; None for none.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "wandb_session.json"
        self.first_step = step
        self.tested_step: int | None = None
        if self.path.exists():
            try:
                before: dict[str, Any] = json.loads(self.path.read_text())
                self.tested_step = before.get("tested_step")
                lost, first = folder / "wandb" / str(before["folder"]), int(before["first_step"])
            except (ValueError, KeyError, TypeError, AttributeError):  # closed, or not ours
                return
            if lost.name.startswith("offline-run-"):
                shutil.rmtree(lost, ignore_errors=True)
                self.first_step = min(first, step)

    def opened(self, files: Path) -> None:
        """Notes where W&B records; `files` is the `dir` of its run, <session>/files."""
        self.write({"first_step": self.first_step, "folder": files.parent.name, "tested_step": self.tested_step})

    def closed(self, tested_step: int | None) -> None:
        """Everything is in W&B's own file: nothing to replace.

        Args:
            tested_step: the step whose test rows are among it.
        """
        self.write({"tested_step": tested_step})

    def write(self, content: dict[str, Any]) -> None:
        write_atomically(self.path, json.dumps(content) + "\n")
