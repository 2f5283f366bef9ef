"""TensorBoard: event files in <run folder>/tensorboard; `tensorboard --logdir runs` shows every run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from provscale.files import sync, write_atomically
from provscale.tracking.base import TRACKERS, TrackedRun, Tracker, numbers
from provscale.tracking.metrics_file import rows_after


@TRACKERS.register("tensorboard")
class TensorBoardTracker(Tracker):
    """Each session of a run writes an event file of its own, and tells readers from which step on it replaces others.

    The file `recorded_step` holds the last step of which everything is on the disk. A session starts behind it, with
    rows of metrics.jsonl where training is further; so there is neither gap nor duplicate, even if TensorBoard was
    switched on late or failed on the way.
    """

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = run.config.folder / "tensorboard"
        self.folder.mkdir(exist_ok=True)
        self.note = self.folder / "recorded_step"
        self.latest = self.synced = min(int(self.note.read_text()), run.step) if self.note.exists() else 0
        # What was recorded at this step or later is void.
        self.writer = SummaryWriter(str(self.folder), purge_step=self.synced + 1 if self.synced else 0)
        if self.synced == 0:
            self.writer.add_text("config", f"```\n{run.config.to_yaml()}\n```", 0)
        for row in rows_after(self.synced, run):
            self.log(row["kind"], row, row["step"])
        self.sync()

    def log(self, kind: str, row: dict[str, Any], step: int) -> None:
        for tag, value in numbers(kind, row).items():
            if tag != f"{kind}/step":
                self.writer.add_scalar(tag, value, self.unsynced(step))
        self.latest = step

    def images(self, name: str, images: list[NDArray[np.uint8]], captions: list[str], step: int) -> None:
        for image, caption in zip(images, captions, strict=True):
            self.writer.add_image(f"{name}/{caption}", image, self.unsynced(step), dataformats="HWC")

    def summary(self, values: dict[str, Any]) -> None:
        table = "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in values.items())
        self.writer.add_text("summary", table, self.unsynced(self.latest))

    def unsynced(self, step: int) -> int:
        """Where to record something of a step: what comes after the step's checkpoint, as test metrics do, is one step
        further, for a finished run that is started again records it again and must purge this."""
        return max(step, self.synced + 1)

    def sync(self) -> None:
        self.writer.flush()
        for path in self.folder.glob("events.*"):
            sync(path)
        write_atomically(self.note, str(self.latest))
        self.synced = self.latest

    def close(self, failed: bool) -> None:
        self.writer.close()
