"""Executors by name. The modules below register themselves when imported."""

import torch

from provscale.guidance.executors import compiled, cuda_graph, eager  # noqa: F401  (they register)
from provscale.guidance.executors.base import EXECUTORS, Executor

__all__ = ["EXECUTORS", "Executor", "choose_executor"]


def choose_executor(device: torch.device, recordable: bool) -> str:
    """What `auto` is in training: one launch per step instead of thousands, wherever a step can be recorded.

    Args:
        recordable: parameters stay in place in memory, and nothing in the step waits for the device.
    """
    return "cuda_graph" if device.type == "cuda" and recordable else "eager"
