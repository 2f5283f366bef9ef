"""What is told of a training step, read from the device without making it wait."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from provscale.data.plan import MicroBatch
from provscale.errors import UserError

if TYPE_CHECKING:
    from provscale.data.splits import ItemSource
    from provscale.engine import Engine


class Readout:
    """A small tensor on its way to the host.

    On CUDA the copy is queued behind the work that makes the numbers, and `read` waits until it has happened; a caller
    that has queued more work in the meantime keeps the device busy while it waits. Elsewhere there is nothing to await.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.host.copy_(tensor, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(tensor.device))
        else:
            self.host = tensor.clone()

    def read(self) -> list[float]:
        """The numbers of a one-dimensional tensor."""
        if self.arrived is not None:
            self.arrived.synchronize()
        numbers: list[float] = self.host.tolist()
        return numbers


@dataclass
class StepReport:
    """One optimizer step.

    Attributes:
        step, epoch: from 0.
        rate: learning rate.
        micro_batches: of this process.
        names: of the losses: `loss`, `loss_cls`, `loss_guidance` and the network's own.
        mine: float64 [names + 2] on the device: this process's losses; how many of its samples are edits without
            guidance, times the number of processes, so that the mean is the sum; whether it was asked to stop.
        agreed: the same, mean over processes.
        samples: of all processes.
        seconds: since the end of the step before, or of an evaluation or checkpoint after it.
        waited: seconds of those in which the training process waited for the loader.
        losses: the mean over processes by name, once it has been read.
        unguided: edits without guidance among `samples`, likewise.
    """

    step: int
    epoch: int
    rate: float
    micro_batches: list[MicroBatch]
    names: tuple[str, ...]
    mine: Tensor
    agreed: Readout
    samples: int
    seconds: float = 0.0
    waited: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    unguided: int = 0

    def read(self) -> bool:
        """Waits for `agreed`; returns whether any process was asked to stop."""
        *values, unguided, stop = self.agreed.read()
        self.unguided = round(unguided) if math.isfinite(unguided) else 0
        self.losses = dict(zip(self.names, values, strict=True))
        return stop > 0

    def refuse_unless_finite(self, engine: Engine, source: ItemSource, last_checkpoint: Path | None) -> None:
        """Raises UserError on every process when the mean loss is not finite, naming the batch's files.

        Once it has been read, on all processes; they exchange the names.
        """
        # The sum of all: what is NaN or infinite alone makes it so.
        if math.isfinite(self.losses["loss"]):
            return
        names: list[str] = []
        if not bool(torch.isfinite(self.mine).all()):
            names = [source[index].name for micro in self.micro_batches for index in micro.indices[: micro.size]]
        names = [name for part in engine.gather(names) for name in part]
        raise UserError(
            f"training: the loss is {self.losses['loss']} at step {self.step + 1}, nothing of it was saved; last "
            f"checkpoint: {last_checkpoint or 'none'}; lower guidance.alpha or optim.lr, or look at the batch: "
            + ", ".join(names)
        )

    def row(self) -> dict[str, Any]:
        """The step's line of metrics.jsonl, where steps and epochs count from 1."""
        seconds = max(self.seconds, 1e-9)
        return {
            "kind": "train",
            "step": self.step + 1,
            "epoch": self.epoch + 1,
            **self.losses,
            "lr": self.rate,
            "samples_per_second": self.samples / seconds,
            "data_wait": self.waited / seconds,
        }
