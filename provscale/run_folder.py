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
import yaml

from provscale.checkpoint_folder import Progress, write_atomically
from provscale.config import Config
from provscale.engine import Engine
from provscale.errors import UserError
from provscale.pictures import Pictures, gradient_image, mask_image
from provscale.report import write_report
from provscale.tracking import MetricsFile, WandbTracker

# Keys that may change when a run is resumed: they do not change what is trained.
FREE_ON_RESUME = ("run.dir", "run.tags", "run.group", "data.root", "data.workers", "evaluation.batch_size")
FREE_SECTIONS = ("tracking.", "checkpoint.")


class RunFolder:
    """Context manager of a run's folder; holds its lock. Every method is called by all processes."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self.engine, self.config = engine, config
        self.path = config.folder
        self.lock: TextIO | None = None
        self.metrics: MetricsFile | None = None
        self.wandb: WandbTracker | None = None

    def __enter__(self) -> RunFolder:
        """Raises UserError: another job holds the folder, it is of another config, or not shared between nodes."""
        hashes = self.engine.gather(self.config.to_yaml())
        if any(other != hashes[0] for other in hashes):
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
        except OSError as error:
            raise UserError(f"run.dir: {self.path} cannot be written ({error.strerror}); choose another") from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.seek(0)
            owner = self.lock.read().strip() or "another process"
            self.lock.close()
            self.lock = None
            raise UserError(
                f"run.name: {self.path} is in use by {owner}; choose another run.name or end that job"
            ) from None
        job = os.environ.get("SLURM_JOB_ID")
        owner = f"{'job ' + job + ', ' if job else ''}process {os.getpid()} on {socket.gethostname()}"
        self.lock.seek(0)
        self.lock.truncate()
        self.lock.write(owner)
        self.lock.flush()
        frozen = self.path / "config.yaml"
        if frozen.exists() and self.config.checkpoint.resume != "never":
            refuse_changes(yaml.safe_load(frozen.read_text()), self.config.to_dict(), self.path)
        write_atomically(frozen, self.config.to_yaml())
        return owner

    def reads_token(self, token: str) -> bool:
        try:
            return (self.path / "lock").read_text() == token
        except OSError:
            return False

    def open_logs(self, step: int) -> None:
        """Opens metrics.jsonl and W&B; rows after `step` are dropped, training will write them again."""
        if self.engine.is_main:
            self.metrics = MetricsFile(self.path / "metrics.jsonl", step)
        self.wandb = WandbTracker(self.engine.accelerator, self.config, {"environment": environment()})

    def log_step(self, row: dict[str, Any], last: bool) -> None:
        if row["step"] % self.config.tracking.log_every and not last:
            return
        self.write(row, "train")

    def write(self, row: dict[str, Any], prefix: str) -> None:
        if self.metrics is not None:
            self.metrics.write(row)
        if self.wandb is not None:
            self.wandb.log(prefix, row, row["step"])

    def save_pictures(self, pictures: Pictures, step: int) -> None:
        if not self.engine.is_main:
            return
        pictures.save(self.path / "pictures.npz")
        if self.wandb is not None:
            rows = [
                np.concatenate([image, mask_image(mask), gradient_image(gradient)], axis=1)
                for image, mask, gradient in zip(pictures.images, pictures.masks, pictures.gradients, strict=True)
            ]
            self.wandb.log_images("input | provenance | input gradient", rows, list(pictures.names), step)

    def finish(self, progress: Progress, total_parameters: int) -> None:
        """Writes summary.json and report.html."""
        if not self.engine.is_main:
            return
        summary = {
            "best_epoch": progress.best_epoch,
            "best_metrics": progress.best_metrics,
            "final_metrics": progress.last_metrics,
            "steps": progress.step,
            "wall_seconds": round(progress.seconds, 2),
            "world_size": self.engine.world_size,
            "engine": self.engine.name,
            "parameters": total_parameters,
            "environment": environment(),
        }
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")
        if self.wandb is not None:
            self.wandb.summary({"best_epoch": progress.best_epoch, **progress.best_metrics})
        write_report(self.path / "report.html", [self.path])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.metrics is not None:
            self.metrics.close()
        if self.wandb is not None and kind is None:
            self.wandb.close()
        if self.lock is not None:
            self.lock.close()


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def refuse_changes(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises UserError naming the first key that would make a resumed run another training."""
    old, new = flatten(before), flatten(now)
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key) and key not in FREE_ON_RESUME and not key.startswith(FREE_SECTIONS):
            raise UserError(
                f"{key}: is {new.get(key)}, but {folder} was started with {old.get(key)}; restore it to resume, or "
                "choose another run.name"
            )


def environment() -> dict[str, Any]:
    """Versions, hardware and git revision, for summary.json and W&B."""
    packages = ("torch", "torchvision", "timm", "accelerate", "numpy", "provscale")
    versions = {name: importlib.metadata.version(name) for name in packages}
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
