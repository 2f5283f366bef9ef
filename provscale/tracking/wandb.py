"""Weights & Biases."""

from __future__ import annotations

import netrc
import os
import secrets
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import numpy as np
from numpy.typing import NDArray

from provscale.files import write_atomically
from provscale.tracking.base import TRACKERS, TrackedRun, Tracker, numbers
from provscale.tracking.metrics_file import rows_after
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


@TRACKERS.register("wandb")
def wandb_tracker(run: TrackedRun) -> Tracker:
    """W&B, or nothing where `tracking.wandb` says disabled."""
    return Tracker() if run.config.tracking.wandb == "disabled" else WandbTracker(run)


class WandbTracker(Tracker):
    """One W&B run per training run, continued under the same id after a resume; offline without a login."""

    def __init__(self, run: TrackedRun) -> None:
        self.tracked, self.folder = run, run.config.folder
        mode = run.config.tracking.wandb
        if mode == "online" and not has_wandb_login():
            mode = "offline"
            console.print("W&B: no login found, recording offline")
        identity = self.folder / "wandb_id.txt"
        if not identity.exists():
            write_atomically(identity, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
        self.identity = identity.read_text().strip()
        os.environ.setdefault("WANDB_SILENT", "true")
        self.session = WandbSession(self.folder, run.step)
        self.tested_step = self.session.tested_step
        self.start(mode)
        self.session.opened(Path(self.run.dir))
        for row in rows_after(self.session.first_step, run):
            self.log(row["kind"], row, row["step"])

    def start(self, mode: Literal["online", "offline", "disabled"]) -> None:
        """Opens the W&B run; offline where the server cannot be reached."""
        import wandb

        config = self.tracked.config
        arm = "guided" if config.guidance.alpha > 0 else "baseline"
        try:
            self.run = wandb.init(
                project=config.tracking.project,
                name=config.run.name,
                id=self.identity,
                resume="allow",
                mode=mode,
                dir=str(self.folder),
                group=config.run.group or None,
                job_type=arm,
                tags=list(dict.fromkeys([*config.run.tags, arm])),
                settings=wandb.Settings(init_timeout=WANDB_TIMEOUT, login_timeout=WANDB_TIMEOUT),
            )
        except Exception as error:  # no network, a wrong key, an unreachable server
            if mode != "online":
                raise
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            console.print(f"W&B: cannot be reached ({first[:120]}), recording offline", markup=False)
            wandb.teardown()  # the helper process still holds the run's id
            self.start("offline")
            return
        self.run.config.update({**config.to_dict(), "environment": self.tracked.environment}, allow_val_change=True)
        self.run.define_metric("global_step")
        self.run.define_metric("*", step_metric="global_step")

    def log(self, kind: str, row: dict[str, Any], step: int) -> None:
        """Records a row; not the test rows that a finished run computes again when it is started again."""
        if kind.startswith("test_"):
            if step == self.session.tested_step:
                return
            self.tested_step = step
        self.run.log({**numbers(kind, row), "global_step": step})

    def images(self, name: str, images: list[NDArray[np.uint8]], captions: list[str], step: int) -> None:
        import wandb

        pictures = [wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
        self.run.log({name: pictures, "global_step": step})

    def summary(self, values: dict[str, Any]) -> None:
        self.run.summary.update(values)

    def close(self, failed: bool) -> None:
        """Ends the W&B run; `failed` marks it so there, and has its last rows recorded again when it is resumed."""
        try:
            self.run.finish(exit_code=int(failed))
        except Exception:  # W&B's helper process has died, e.g. of the SIGTERM that ends a job
            import wandb

            wandb.teardown()  # or it would try again, with a traceback, at the program's end
            raise
        if failed:
            return
        self.session.closed(self.tested_step)
        if self.run.offline:
            sessions = self.folder / "wandb" / "offline-run-*"
            console.print(f"W&B: recorded offline; with a login: wandb sync {sessions}", highlight=False)
