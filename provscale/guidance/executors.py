"""Executors: how the inside of a step runs. They differ in speed only, never in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from provscale.guidance.loss import classification_loss, guidance_loss
from provscale.registry import Registry
from provscale.sample import Sample


@dataclass
class StepSettings:
    """What the loss needs besides network and sample.

    Attributes:
        alpha: weight of L_PG (Eq. 1); 0 trains without guidance and computes no second derivative.
        reduction: `sum` or `mean` of the squared gradient over one sample's elements.
        masked: False is the "no mask" ablation.
        autocast_dtype: None runs the network in FP32; torch.bfloat16 under autocast.
        class_weights: [K] or None.
    """

    alpha: float
    reduction: str = "sum"
    masked: bool = True
    autocast_dtype: torch.dtype | None = None
    class_weights: Tensor | None = None


@dataclass
class StepLosses:
    """Detached FP32 scalars of one step: L_total, L_cls, L_PG (not multiplied by alpha; 0 when unguided)."""

    loss: Tensor
    loss_cls: Tensor
    loss_guidance: Tensor


class Executor(Protocol):
    def __call__(
        self, network: nn.Module, parameters: Sequence[Tensor], sample: Sample, settings: StepSettings
    ) -> tuple[StepLosses, list[Tensor | None]]:
        """Returns the losses and d L_total / d parameters (None for a parameter that is not used)."""


EXECUTORS: Registry[type[Executor]] = Registry("guidance.executor")


@contextmanager
def twice_differentiable_attention() -> Iterator[None]:
    """Fused attention has no second derivative; PyTorch's MATH path is made of operations that have."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def run_network(network: nn.Module, inputs: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Logits [B, K] in at least FP32; the network itself runs under autocast to `dtype` unless that is None."""
    with torch.autocast(inputs.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        logits = network(inputs)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def losses_and_gradients(
    network: nn.Module, parameters: Sequence[Tensor], sample: Sample, settings: StepSettings
) -> tuple[StepLosses, list[Tensor | None]]:
    """The whole guided step: forward, input gradient, L_PG and parameter gradients. The heart of every executor."""
    guided = sample.guided and settings.alpha != 0
    inputs = sample.inputs.detach().requires_grad_(guided)
    with torch.enable_grad():
        if guided:
            with twice_differentiable_attention():
                logits = run_network(network, inputs, settings.autocast_dtype)
            loss_guidance = guidance_loss(logits, inputs, sample, settings.reduction, settings.masked)
        else:
            logits = run_network(network, inputs, settings.autocast_dtype)
            loss_guidance = torch.zeros((), dtype=logits.dtype, device=logits.device)
        loss_cls = classification_loss(logits, sample, settings.class_weights)
        loss = loss_cls + settings.alpha * loss_guidance
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return StepLosses(loss.detach(), loss_cls.detach(), loss_guidance.detach()), list(gradients)


@EXECUTORS.register("eager")
class EagerExecutor:
    """Runs the step operation by operation."""

    def __call__(
        self, network: nn.Module, parameters: Sequence[Tensor], sample: Sample, settings: StepSettings
    ) -> tuple[StepLosses, list[Tensor | None]]:
        return losses_and_gradients(network, parameters, sample, settings)
