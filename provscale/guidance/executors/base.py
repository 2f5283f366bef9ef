"""Executors: how a step's inside runs. They differ in speed only, never in numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from provscale.guidance.objective import Gradients, Losses, Objective
from provscale.registry import Registry
from provscale.sample import Sample


class Executor(Protocol):
    def __call__(
        self,
        network: nn.Module,
        parameters: Sequence[Tensor],
        sample: Sample,
        objective: Objective,
        alpha: float | Tensor,
        verify: bool = False,
    ) -> tuple[Losses, Gradients]:
        """The objective's losses and gradients; the arguments are those of `Objective`."""


EXECUTORS: Registry[Callable[[], Executor]] = Registry("guidance.executor")
