"""The step by PyTorch's ordinary backward, to compare with, and a network without a second derivative."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from networks import CLASSES
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from provscale.guidance.loss import guidance_loss
from provscale.sample import Sample


def plain_step(network: nn.Module, sample: Sample, alpha: float, dtype: torch.dtype | None = None) -> Tensor:
    """The same loss by PyTorch's ordinary `backward`, hooks and all, as in a textbook's double backpropagation."""
    inputs = sample.inputs.clone().requires_grad_(alpha != 0)
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
        logits = network(inputs).float()
    loss = F.cross_entropy(logits, sample.targets[:, 0], reduction="none")
    if sample.soft:
        other = F.cross_entropy(logits, sample.targets[:, 1], reduction="none")
        loss = sample.mixing_weight * loss + (1 - sample.mixing_weight) * other
    total = loss.mean()
    if alpha:
        total = total + alpha * guidance_loss(logits, inputs, sample)
    total.backward()
    return total.detach()


class Square(torch.autograd.Function):
    """x^2 with a right first derivative and no second one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class OnceDifferentiable(nn.Module):
    """A network on 16 x 16 pixels whose second derivative would silently be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3 * 16 * 16, 6), nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(Square.apply(self.first(inputs.flatten(1))))
