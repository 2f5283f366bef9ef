"""What a tracker is: somewhere that the numbers and pictures of a run go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from provscale.config import Config
from provscale.registry import Registry


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told when it opens.

    Attributes:
        config: of the run; `config.folder` is where a tracker may write.
        step: optimizer steps that are done already, above 0 after a resume.
        total_steps: optimizer steps of the whole training.
        environment: versions, hardware, git revision and command.
    """

    config: Config
    step: int
    total_steps: int
    environment: dict[str, Any]


class Tracker:
    """Somewhere that numbers and pictures go. A subclass overrides what it can show; the rest does nothing.

    Only the main process has trackers. A method may raise anything: the tracker is then closed, and training goes on.

    Attributes:
        required: an exception ends the run instead.
        every_step: `log` also gets the rows of training that `tracking.log_every` leaves out.
    """

    required: ClassVar[bool] = False
    every_step: ClassVar[bool] = False

    def log(self, kind: str, row: dict[str, Any], step: int) -> None:
        """Records a row of metrics.jsonl.

        Args:
            kind: `train`, `gradients` (how long those of L_cls and L_PG are), `validation` (after an epoch, on the
                split that selects), `test_best` or `test_last`.
            row: numbers by name, and the row's own `kind`, `step` and `epoch`.
            step: optimizer steps done, from 1.
        """

    def images(self, name: str, images: list[NDArray[np.uint8]], captions: list[str], step: int) -> None:
        """Shows pictures, uint8 [H, W, 3], each with a caption, under one name."""

    def summary(self, values: dict[str, Any]) -> None:
        """Records the metrics of the run, at its end."""

    def sync(self) -> None:
        """Makes sure that everything so far outlives this process; called before a checkpoint that counts on it."""

    def close(self, failed: bool) -> None:
        """Ends the record; `failed` says that training, or this tracker, ended with an exception."""


TRACKERS: Registry[Callable[[TrackedRun], Tracker]] = Registry("tracking.trackers")
"""Builders by name, called on the main process with the run that starts or goes on."""


def numbers(kind: str, row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row, each as KIND/NAME."""
    return {
        f"{kind}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
