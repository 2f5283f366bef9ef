"""What a run and the job that started it tell each other through the environment."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from provscale.config import Config
from provscale.files import write_atomically

OUTCOME = "PROVSCALE_OUTCOME"
"""Names a file in which a job script finds how training ended: `finished FOLDER`, `stopped FOLDER` or `mistake`.

`running FOLDER`, or no file, means that training died. Exit codes would not do: launchers turn all of them into 1.
"""

Outcome = Literal["running", "finished", "stopped", "mistake"]


def tell_outcome(outcome: Outcome, folder: Path | None = None) -> None:
    """Tells the job script, if there is one, how training stands or ended.

    `mistake` is for every process to tell, as it may show on one node only; the others (`stopped` means resumable, with
    a checkpoint) are the main process's.
    """
    path = os.environ.get(OUTCOME)
    if path and (outcome == "mistake" or os.environ.get("RANK", "0") == "0"):
        write_atomically(Path(path), f"{outcome} {folder.resolve() if folder else ''}\n")


def sweep_member(config: Config) -> Config:
    """Under a W&B sweep agent, gives each run its own folder: run.name gets the W&B run's id appended, once."""
    identity = os.environ.get("WANDB_RUN_ID")
    if not (os.environ.get("WANDB_SWEEP_ID") and identity) or config.run.name.endswith(f"-{identity}"):
        return config
    return replace(config, run=replace(config.run, name=f"{config.run.name}-{identity}"))
