"""Weights & Biases, through Accelerate's tracker."""

from __future__ import annotations

import contextlib
import netrc
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from accelerate import Accelerator

from provscale.config import Config
from provscale.files import write_atomically
from provscale.tracking.metrics_file import read_metrics
from provscale.tracking.terminal import console
from provscale.tracking.wandb_session import WandbSession

WANDB_TIMEOUT = 20  # seconds to wait for the server before recording offline


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

    def __init__(self, accelerator: Accelerator, config: Config, extra: dict[str, Any], step: int = 0) -> None:
        """`step`: where training starts. Under it are only rows that a killed process had not recorded for good."""
        self.accelerator = accelerator
        self.enabled = config.tracking.wandb != "disabled"
        if not self.enabled:
            return
        mode = config.tracking.wandb
        if mode == "online" and not has_wandb_login():
            mode = "offline"
            if accelerator.is_main_process:
                console.print("W&B: no login found, recording offline")
        if accelerator.is_main_process:
            identity = config.folder / "wandb_id.txt"
            if not identity.exists():
                write_atomically(identity, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
            os.environ.setdefault("WANDB_SILENT", "true")
            self.identity = identity.read_text().strip()
            session = WandbSession(config.folder, step)
        self.config, self.extra = config, extra
        if mode == "online":
            try:
                self.start(mode)
            except Exception as error:  # no network, a wrong key, an unreachable server: training goes on without it
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                console.print(f"W&B: cannot be reached ({first[:120]}), recording offline", markup=False)
                import wandb

                wandb.teardown()  # the helper process still holds the run's id, Accelerate the failed tracker
                accelerator.trackers.clear()
                self.start("offline")
        else:
            self.start(mode)
        if accelerator.is_main_process:
            self.run = accelerator.get_tracker("wandb", unwrap=True)
            self.run.define_metric("global_step")
            self.run.define_metric("*", step_metric="global_step")
            self.session = session
            session.opened(Path(self.run.dir))
            for row in read_metrics(config.folder / "metrics.jsonl"):
                if session.first_step < row["step"] <= step:
                    self.log(row["kind"], row, row["step"])

    def start(self, mode: str) -> None:
        """Opens the W&B run, on the main process; Accelerate does nothing on others."""
        arguments: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            import wandb

            run = self.config.run
            arm = "guided" if self.config.guidance.alpha > 0 else "baseline"
            arguments = {
                "name": run.name,
                "id": self.identity,
                "resume": "allow",
                "mode": mode,
                "dir": str(self.config.folder),
                "group": run.group or None,
                "job_type": arm,
                "tags": list(dict.fromkeys([*run.tags, arm])),
                "settings": wandb.Settings(init_timeout=WANDB_TIMEOUT, login_timeout=WANDB_TIMEOUT),
            }
        self.accelerator.init_trackers(
            self.config.tracking.project,
            config={**self.config.to_dict(), **self.extra},
            init_kwargs={"wandb": arguments},
        )

    def guarded(self, action: Callable[[], object]) -> bool:
        """Does something with W&B; training goes on when W&B's helper process has died, e.g. of the job's SIGTERM."""
        try:
            action()
        except Exception as error:  # whatever the broken connection makes of it
            self.enabled = False
            console.print(
                f"W&B: lost ({type(error).__name__}), further rows are only in {self.config.folder}/metrics.jsonl; "
                "an offline run gets them when it is resumed",
                highlight=False,
                markup=False,
            )
            import wandb

            with contextlib.suppress(Exception):
                wandb.teardown()  # or it would try again, with a traceback, at the program's end
            return False
        return True

    def log(self, prefix: str, row: dict[str, Any], step: int) -> None:
        if self.enabled and self.accelerator.is_main_process:
            values = {f"{prefix}/{key}": value for key, value in row.items() if isinstance(value, int | float)}
            self.guarded(lambda: self.run.log({**values, "global_step": step}))

    def log_images(self, name: str, images: list[np.ndarray], captions: list[str], step: int) -> None:
        """`images`: uint8 [H, W, 3]."""
        if self.enabled and self.accelerator.is_main_process:
            import wandb

            pictures = [wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
            self.guarded(lambda: self.run.log({name: pictures, "global_step": step}))

    def summary(self, values: dict[str, Any]) -> None:
        if self.enabled and self.accelerator.is_main_process:
            self.guarded(lambda: self.run.summary.update(values))

    def close(self, failed: bool) -> None:
        """Ends the W&B run; `failed` marks it so there, and has its last rows recorded again when it is resumed."""
        if not self.enabled:
            return
        is_main = self.accelerator.is_main_process
        if failed:
            if is_main:
                self.guarded(lambda: self.run.finish(exit_code=1))
        elif self.guarded(self.accelerator.end_training) and is_main:
            self.session.closed()
            if self.run.offline:
                sessions = self.config.folder / "wandb" / "offline-run-*"
                console.print(f"W&B: recorded offline; with a login: wandb sync {sessions}", highlight=False)
