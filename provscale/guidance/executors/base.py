"""Executors: how the inside of a step runs. They differ in speed only, never in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from provscale.guidance.loss import at_least_float32, classification_loss, guidance_loss
from provscale.guidance.sampled_term import draw_first, one_term
from provscale.guidance.split_batch import parts_of, refuse_batch_statistics
from provscale.registry import Registry
from provscale.sample import Sample
from provscale.second_derivatives.differentiability import refuse_first_order_operations
from provscale.second_derivatives.substitute import fast_second_derivatives


@dataclass
class StepSettings:
    """What the loss needs besides network and sample.

    Attributes:
        alpha: weight of L_PG (Eq. 1); 0 trains without guidance and computes no second derivative. A scalar tensor
            is taken for not 0, whatever it holds.
        reduction: `sum` or `mean` of the squared gradient over one sample's elements.
        masked: False is the "no mask" ablation.
        autocast_dtype: None runs the network in FP32; torch.bfloat16 under autocast.
        class_weights: [K] or None.
        sampled_term: one of `SAMPLED_TERMS`; not `none` computes one of a soft label's two terms.
        split_batch: real samples run an ordinary step; read by the eager executor only.
        verify: look for operations whose second derivative PyTorch would leave out silently; once is enough.
    """

    alpha: float | Tensor
    reduction: str = "sum"
    masked: bool = True
    autocast_dtype: torch.dtype | None = None
    class_weights: Tensor | None = None
    sampled_term: str = "none"
    split_batch: bool = False
    verify: bool = False


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


EXECUTORS: Registry[Callable[[], Executor]] = Registry("guidance.executor")


def is_guided(sample: Sample, settings: StepSettings) -> bool:
    """Whether this step computes L_PG. A tensor alpha is not looked at: the host would wait for the device."""
    return sample.guided and (isinstance(settings.alpha, Tensor) or settings.alpha != 0)


@contextmanager
def twice_differentiable_attention() -> Iterator[None]:
    """Fused attention has no second derivative; PyTorch's MATH path is made of operations that have."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def run_network(network: nn.Module, inputs: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Logits [B, K] in at least FP32; the network itself runs under autocast to `dtype` unless that is None."""
    with torch.autocast(inputs.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        logits = network(inputs)
    return at_least_float32(logits)


def network_guidance(logits: Tensor, inputs: Tensor, sample: Sample, settings: StepSettings) -> Tensor:
    """L_PG, or its estimate from one of a soft label's two terms."""
    if settings.sampled_term == "none" or not sample.soft:
        return guidance_loss(logits, inputs, sample, settings.reduction, settings.masked)
    term = one_term(sample, draw_first(sample, settings.sampled_term))
    return 2 * guidance_loss(logits, inputs, term, settings.reduction, settings.masked)


def losses_and_gradients(
    network: nn.Module, parameters: Sequence[Tensor], sample: Sample, settings: StepSettings, share: float = 1.0
) -> tuple[StepLosses, list[Tensor | None]]:
    """The whole guided step: forward, input gradient, L_PG and parameter gradients. The heart of every executor.

    Args:
        share: factor of losses and gradients: the part of a batch that `sample` is.
    """
    guided = is_guided(sample, settings)
    inputs = sample.inputs.detach().requires_grad_(guided)
    # A caller's autocast would also act on the derivatives taken here, and on a network that is to run in FP32.
    with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
        if guided:
            with twice_differentiable_attention(), fast_second_derivatives(network):
                logits = run_network(network, inputs, settings.autocast_dtype)
            loss_guidance = network_guidance(logits, inputs, sample, settings)
        else:
            logits = run_network(network, inputs, settings.autocast_dtype)
            loss_guidance = torch.zeros((), dtype=logits.dtype, device=logits.device)
        loss_cls = classification_loss(logits, sample, settings.class_weights)
        alpha = settings.alpha
        if share != 1:
            loss_cls, loss_guidance = loss_cls * share, loss_guidance * share
        loss = loss_cls + (alpha.to(loss_guidance.dtype) if isinstance(alpha, Tensor) else alpha) * loss_guidance
        if guided and settings.verify:
            refuse_first_order_operations(loss)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return StepLosses(loss.detach(), loss_cls.detach(), loss_guidance.detach()), list(gradients)


@EXECUTORS.register("eager")
class EagerExecutor:
    """Runs the step operation by operation, in two parts if the settings say so."""

    def __call__(
        self, network: nn.Module, parameters: Sequence[Tensor], sample: Sample, settings: StepSettings
    ) -> tuple[StepLosses, list[Tensor | None]]:
        if not (settings.split_batch and is_guided(sample, settings)):
            return losses_and_gradients(network, parameters, sample, settings)
        refuse_batch_statistics(network)
        # One after the other: the first part's graph is gone before the second part's is built.
        results = [losses_and_gradients(network, parameters, part, settings, share) for part, share in parts_of(sample)]
        return reduce(added, results)


def added(
    first: tuple[StepLosses, list[Tensor | None]], second: tuple[StepLosses, list[Tensor | None]]
) -> tuple[StepLosses, list[Tensor | None]]:
    """Sums of losses and of gradients; a parameter without a gradient in one of them has the other's."""
    losses = StepLosses(
        first[0].loss + second[0].loss,
        first[0].loss_cls + second[0].loss_cls,
        first[0].loss_guidance + second[0].loss_guidance,
    )
    gradients = [
        one if other is None else other if one is None else one + other
        for one, other in zip(first[1], second[1], strict=True)
    ]
    return losses, gradients
