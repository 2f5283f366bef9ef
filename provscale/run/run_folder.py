"""The run folder <run.dir>/<run.name>/: its lock, frozen config, logs, summary and report."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import torch

from provscale.config import Config
from provscale.data.splits import DataSplits
from provscale.engine import Engine
from provscale.errors import UserError
from provscale.files import write_atomically
from provscale.run.checkpoint_folder import Progress, newest_first
from provscale.run.frozen_config import read_frozen, refuse_changes
from provscale.run.localised import FILE as LOCALISED
from provscale.run.localised import LocalisedPictures
from provscale.run.pictures import Pictures, gradient_image, mask_image
from provscale.tracking import TRACKERS, TrackedRun
from provscale.tracking.metrics_file import NAME as METRICS
from provscale.tracking.metrics_file import MetricsFile
from provscale.tracking.terminal import ProgressBar
from provscale.tracking.trackers import Trackers


class RunFolder:
    """Context manager of a run's folder; holds its lock. Every method is called by all processes.

    Raises:
        UserError: `tracking.trackers` names one that is not registered.
    """

    def __init__(self, engine: Engine, config: Config) -> None:
        for name in config.tracking.trackers:
            TRACKERS[name]
        self.engine, self.config = engine, config
        self.path = config.folder
        self.lock: TextIO | None = None
        self.trackers = Trackers()

    def __enter__(self) -> RunFolder:
        """Raises UserError: another job holds the folder, it is of another config, or not shared between nodes."""
        configs = self.engine.gather(self.config.to_yaml())
        if any(other != configs[0] for other in configs):
            raise UserError("config: the processes were started with different configs; start all with the same one")
        token = self.engine.on_main(self.claim)
        seen = self.engine.gather((socket.gethostname(), self.reads_token(token)))
        blind = sorted({host for host, sees in seen if not sees})
        if blind:
            raise UserError(
                f"run.dir: {self.path} is not shared: {', '.join(blind)} cannot see what the main process wrote there; "
                "put run.dir on a file system that all nodes mount"
            )
        return self

    def claim(self) -> str:
        """Creates and locks the folder, freezes the config. Runs on the main process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = (self.path / "lock").open("a+")
            owner = self.take_lock()
            frozen = self.path / "config.yaml"
            used = frozen.exists() and bool(newest_first(self.path / "checkpoints"))
            never = self.config.checkpoint.resume == "never"
            if used and not never:
                refuse_changes(read_frozen(frozen), self.config.to_dict(), self.path)
            if not (used and never):  # else the checkpointer is about to refuse the folder
                write_atomically(frozen, self.config.to_yaml())
        except OSError as error:
            self.release()
            raise UserError(f"run.dir: {self.path} cannot be written ({error.strerror}); choose another") from None
        except UserError:
            self.release()
            raise
        return owner

    def take_lock(self) -> str:
        """Locks the folder for this process, and writes into the lock who that is."""
        assert self.lock is not None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.seek(0)
            other = self.lock.read().strip() or "another process"
            raise UserError(
                f"run.name: {self.path} is in use by {other}; choose another run.name or end that job"
            ) from None
        job = os.environ.get("SLURM_JOB_ID")
        owner = f"{'job ' + job + ', ' if job else ''}process {os.getpid()} on {socket.gethostname()}"
        self.lock.seek(0)
        self.lock.truncate()
        self.lock.write(owner)
        self.lock.flush()
        return owner

    def release(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def reads_token(self, token: str) -> bool:
        try:
            return (self.path / "lock").read_text() == token
        except OSError:
            return False

    def open_trackers(self, step: int, total_steps: int) -> None:
        """Opens the trackers, on the main process; rows after `step` are dropped, training will write them again."""
        if not self.engine.is_main:
            return
        self.trackers.add("terminal", ProgressBar(total_steps, step))
        self.trackers.add(METRICS, MetricsFile(self.path / METRICS, step))
        run = TrackedRun(self.config, step, total_steps, environment())
        for name in dict.fromkeys(self.config.tracking.trackers):
            self.trackers.open(name, run)

    def log_step(self, row: dict[str, Any], last: bool) -> None:
        """Records a row of training; most trackers get every `tracking.log_every`-th and the last."""
        self.trackers.log("train", row, sparse=bool(row["step"] % self.config.tracking.log_every) and not last)

    def log(self, kind: str, row: dict[str, Any]) -> None:
        """Records a row that is not of a training step; `kind` is what trackers call it."""
        self.trackers.log(kind, row)

    def sync(self) -> None:
        """Puts what was logged so far on the disk; called before a checkpoint that counts on it."""
        self.trackers.sync()

    def save_pictures(self, pictures: Pictures, step: int) -> None:
        if not self.engine.is_main:
            return
        pictures.save(self.path / "pictures.npz")
        rows = [
            np.concatenate([image, mask_image(mask), gradient_image(gradient)], axis=1)
            for image, mask, gradient in zip(pictures.images, pictures.masks, pictures.gradients, strict=True)
        ]
        self.trackers.images("input | provenance | input gradient", rows, list(pictures.names), step)

    def save_localised(self, shown: LocalisedPictures | None, step: int) -> None:
        if not self.engine.is_main or shown is None:
            return
        shown.save(self.path / LOCALISED)
        rows = [
            np.concatenate([shown.found(index), shown.gradient(index)], axis=1) for index in range(len(shown.names))
        ]
        names = [name.rsplit("/", 1)[-1] for name in shown.names.tolist()]
        self.trackers.images("score map and boxes | input gradient", rows, names, step)

    def finish(
        self, progress: Progress, splits: DataSplits, tested: dict[str, dict[str, float]], total_parameters: int
    ) -> None:
        """Writes summary.json and report.html.

        Args:
            splits: tells on which split and by which metric the best epoch was chosen.
            tested: test metrics with the weights of the `best` and of the `last` epoch.

        `unguided_edits` of the summary: how many edits of the last epoch had a mask of one value, so no guidance.
        """
        if not self.engine.is_main:
            return
        summary = {
            "best_epoch": progress.best_epoch,
            "best_metric": splits.best,
            "selected_on": splits.selected_on,
            "validation": progress.best_metrics if splits.selected_on == "validation" else {},
            "test": {"best": {}, **tested},
            "steps": progress.step,
            "unguided_edits": progress.unguided_edits,
            "wall_seconds": round(progress.seconds, 2),
            "world_size": self.engine.world_size,
            "engine": self.engine.name,
            "parameters": total_parameters,
            "classes": list(splits.class_names),
            # Of evaluated images scaled to [0, 1]; null where inputs are no images.
            "mean": splits.mean,
            "std": splits.std,
            "environment": environment(),
        }
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")
        # What a table of runs needs, for those that have only what a tracker holds.
        told = {name: summary[name] for name in ("best_epoch", "best_metric", "selected_on", "wall_seconds")}
        self.trackers.summary({**told, **progress.best_metrics})
        # Imported here: matplotlib's figures are needed once, at the end.
        from provscale.run.report import write_report

        write_report(self.path / "report.html", [self.path])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.trackers.close(failed=kind is not None)
        self.release()


def installed_version(package: str) -> str:
    """Of an installed package; "not installed" of a checkout that Python finds by its path alone."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """Versions, hardware and git revision, for summary.json and trackers."""
    packages = ("torch", "torchvision", "timm", "accelerate", "numpy", "provscale")
    versions = {name: installed_version(name) for name in packages}
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        **versions,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "git_revision": revision.stdout.strip() or None,
        "command": " ".join(sys.argv),
    }
