"""A step taken apart into what stays fixed (its signature) and tensors that may hold other values next time.

Executors that record a step, as a traced graph or a CUDA graph, run one recording for every signature.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from provscale.guidance.executors.base import Executor
from provscale.guidance.objective import Gradients, Losses, Objective, is_guided
from provscale.sample import Sample

USED_FIELDS = ("inputs", "targets", "mixing_weight", "provenance_mask", "is_synthetic", "valid_mask")
"""Fields of a sample that the step reads."""


def step_arguments(sample: Sample, objective: Objective, alpha: float | Tensor) -> dict[str, Tensor]:
    """The tensors of one step beside the network's, by name; alpha is a float64 scalar, absent when unguided."""
    arguments = {name: getattr(sample, name) for name in USED_FIELDS if getattr(sample, name) is not None}
    if objective.class_weights is not None:
        arguments["class_weights"] = objective.class_weights
    if is_guided(sample, alpha):
        device = sample.inputs.device
        arguments["alpha"] = (
            alpha if isinstance(alpha, Tensor) else torch.full((), alpha, dtype=torch.float64, device=device)
        )
    return arguments


def from_arguments(arguments: dict[str, Tensor], objective: Objective) -> tuple[Sample, Objective, float | Tensor]:
    """Sample, objective and alpha that read these tensors; the inverse of `step_arguments`."""
    fields = {name: arguments.get(name) for name in USED_FIELDS}
    sample = Sample(**fields, index=arguments["targets"][:, 0], guided="alpha" in arguments)  # type: ignore[arg-type]
    return sample, replace(objective, class_weights=arguments.get("class_weights")), arguments.get("alpha", 0.0)


def signature(
    network: nn.Module, parameters: Sequence[Tensor], sample: Sample, objective: Objective, alpha: float | Tensor
) -> Hashable:
    """Equal for two steps of one network that run the same operations on tensors of the same shapes.

    It covers shapes, types and strides of the sample, guided or not, the options of guidance, precision, the
    mode (train or eval) of every module and which parameters are trained. It does not cover plain Python attributes
    of the network, such as a dropout rate that someone changes on the way.
    """
    tensors = {name: getattr(sample, name) for name in USED_FIELDS}
    return (
        id(network),
        tuple(
            None if tensor is None else (tensor.shape, tensor.dtype, tensor.stride(), tensor.device)
            for tensor in (*tensors.values(), objective.class_weights)
        ),
        is_guided(sample, alpha),
        (objective.options, objective.autocast_dtype),
        tuple(module.training for module in network.modules()),
        tuple(id(parameter) for parameter in parameters),
    )


@contextmanager
def state_preserved(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Trial runs inside leave no trace: buffers (BatchNorm statistics) and random generators are put back after it."""
    before = [buffer.clone() for buffer in network.buffers()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(network.buffers(), before, strict=True):
                    buffer.copy_(value)


class StepModule(nn.Module):
    """An executor's step as a module, so that `functional_call` can put other tensors in the network's place."""

    def __init__(self, executor: Executor, network: nn.Module) -> None:
        super().__init__()
        self.executor, self.network = executor, network

    def forward(
        self,
        parameters: Sequence[Tensor],
        sample: Sample,
        objective: Objective,
        alpha: float | Tensor,
        verify: bool,
    ) -> tuple[Losses, Gradients]:
        return self.executor(self.network, parameters, sample, objective, alpha, verify=verify)


@dataclass
class FlatResult:
    """Losses and gradients as one list of tensors, and back; a parameter without a gradient keeps its place."""

    names: tuple[str, ...]
    used: tuple[bool, ...]

    @classmethod
    def flatten(cls, losses: Losses, gradients: Gradients) -> tuple[FlatResult, list[Tensor]]:
        tensors = [*losses.values(), *(gradient for gradient in gradients if gradient is not None)]
        return cls(tuple(losses), tuple(gradient is not None for gradient in gradients)), tensors

    def restore(self, tensors: Sequence[Tensor]) -> tuple[Losses, Gradients]:
        remaining = iter(tensors)
        losses = {name: next(remaining) for name in self.names}
        return losses, [next(remaining) if used else None for used in self.used]


def announce(text: str) -> None:
    """One line on standard error, from the main process only."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"[provscale] {text}", file=sys.stderr, flush=True)
