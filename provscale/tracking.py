"""Where numbers go: metrics.jsonl, Weights & Biases (through Accelerate's tracker), and the terminal."""

from __future__ import annotations

import json
import netrc
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from provscale.checkpoint_folder import write_atomically
from provscale.config import Config

console = Console(stderr=True, soft_wrap=True)


class MetricsFile:
    """metrics.jsonl: one JSON object a line, neither gap nor duplicate after a resume."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Keeps the rows up to `resume_step`, which the checkpoint knows of; later ones will be computed again."""
        rows = [row for row in read_metrics(path) if row["step"] <= resume_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        self.file = path.open("a", buffering=1)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")

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


def has_wandb_login() -> bool:
    """Whether a W&B key is at hand (environment or netrc file), without asking and without the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbTracker:
    """One W&B run a training run, continued under the same id after a resume; offline without a login."""

    def __init__(self, accelerator: Accelerator, config: Config, extra: dict[str, Any]) -> None:
        self.accelerator = accelerator
        self.enabled = config.tracking.wandb != "disabled"
        if not self.enabled:
            return
        mode = config.tracking.wandb
        if mode == "online" and not has_wandb_login():
            mode = "offline"
            if accelerator.is_main_process:
                console.print(
                    "W&B: no login found, recording offline; later: wandb sync " + str(config.folder / "wandb")
                )
        identity = config.folder / "wandb_id.txt"
        arguments: dict[str, Any] = {}
        if accelerator.is_main_process:
            if not identity.exists():
                write_atomically(identity, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
            os.environ.setdefault("WANDB_SILENT", "true")
            arguments = {
                "name": config.run.name,
                "id": identity.read_text().strip(),
                "resume": "allow",
                "mode": mode,
                "dir": str(config.folder),
                "group": config.run.group or None,
                "tags": config.run.tags or None,
            }
        accelerator.init_trackers(
            config.tracking.project, config={**config.to_dict(), **extra}, init_kwargs={"wandb": arguments}
        )
        if accelerator.is_main_process:
            self.run = accelerator.get_tracker("wandb", unwrap=True)
            self.run.define_metric("global_step")
            self.run.define_metric("*", step_metric="global_step")

    def log(self, prefix: str, row: dict[str, Any], step: int) -> None:
        if self.enabled:
            values = {f"{prefix}/{key}": value for key, value in row.items() if isinstance(value, int | float)}
            self.accelerator.log({**values, "global_step": step})

    def log_images(self, name: str, images: list[np.ndarray], captions: list[str], step: int) -> None:
        """`images`: uint8 [H, W, 3]."""
        if self.enabled and self.accelerator.is_main_process:
            import wandb

            pictures = [wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
            self.run.log({name: pictures, "global_step": step})

    def summary(self, values: dict[str, Any]) -> None:
        if self.enabled and self.accelerator.is_main_process:
            self.run.summary.update(values)

    def close(self) -> None:
        if self.enabled:
            self.accelerator.end_training()


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
