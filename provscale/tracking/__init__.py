"""Where numbers go: metrics.jsonl and the terminal, and the trackers that `tracking.trackers` names."""

from provscale.tracking import tensorboard, wandb  # registered by import
from provscale.tracking.base import TRACKERS, TrackedRun, Tracker

__all__ = ["TRACKERS", "TrackedRun", "Tracker", "tensorboard", "wandb"]
