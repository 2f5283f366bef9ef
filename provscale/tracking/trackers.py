"""The open trackers of a run, as one: a tracker that fails is left out, and training goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provscale.tracking.base import TRACKERS, TrackedRun, Tracker
from provscale.tracking.terminal import console


class Trackers:
    """Hands everything to each tracker, in the order in which they were opened.

    A tracker that raises an exception is named in one line, closed and left out from there on; the exception of a
    `required` one is passed on.
    """

    def __init__(self) -> None:
        self.opened: dict[str, Tracker] = {}

    def add(self, name: str, tracker: Tracker) -> None:
        self.opened[name] = tracker

    def open(self, name: str, run: TrackedRun) -> None:
        """Adds the registered tracker of that name. One that cannot be opened is left out.

        Raises:
            UserError: there is no tracker of that name.
        """
        build = TRACKERS[name]
        try:
            self.add(name, build(run))
        except Exception as error:  # whatever a tracker's library makes of a wrong key, a full disk or no network
            warn(name, error)

    def log(self, kind: str, row: dict[str, Any], sparse: bool = False) -> None:
        """Records a row of metrics.jsonl; `sparse` means that only trackers of every step want it."""
        self.each(lambda tracker: tracker.log(kind, row, row["step"]), lambda t: t.every_step or not sparse)

    def images(self, name: str, images: list[NDArray[np.uint8]], captions: list[str], step: int) -> None:
        self.each(lambda tracker: tracker.images(name, images, captions, step))

    def summary(self, values: dict[str, Any]) -> None:
        self.each(lambda tracker: tracker.summary(values))

    def sync(self) -> None:
        self.each(lambda tracker: tracker.sync())

    def close(self, failed: bool) -> None:
        """Closes every tracker, whatever becomes of the others."""
        while self.opened:
            name, tracker = next(iter(self.opened.items()))
            del self.opened[name]
            try:
                tracker.close(failed)
            except Exception as error:
                warn(name, error)

    def each(self, action: Callable[[Tracker], None], wants: Callable[[Tracker], bool] = lambda tracker: True) -> None:
        for name, tracker in list(self.opened.items()):
            if not wants(tracker):
                continue
            try:
                action(tracker)
            except Exception as error:
                if tracker.required:
                    raise
                del self.opened[name]
                warn(name, error)
                with contextlib.suppress(Exception):
                    tracker.close(failed=True)


def warn(name: str, error: Exception) -> None:
    """Says in one line that a tracker is left out."""
    first = next(iter(str(error).splitlines()), "")
    reason = f"{type(error).__name__}: {first[:120]}" if first else type(error).__name__
    console.print(f"tracking: {name} failed ({reason}); metrics.jsonl has every row", highlight=False, markup=False)
