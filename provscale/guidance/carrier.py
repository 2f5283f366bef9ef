"""The gradient carrier: a loss whose parameter gradients are already known.

Double backward is what distributed engines get wrong: their hooks fire on every backward pass, or free parameters the
second derivative still needs. Here `torch.autograd.grad` computes all gradients inside the step, firing no hook;
the carrier then returns the loss, and its backward hands each parameter the gradient it should receive, scaled by
the incoming one. To DDP, DeepSpeed, FSDP, gradient accumulation and the optimizer it is a first-order loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class GradientCarrier(torch.autograd.Function):
    """`apply(loss, gradients, anchor, *parameters)` returns `loss` with known gradients of `parameters`."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: Sequence[Tensor | None], anchor: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        # Not save_for_backward: the list is dropped in backward, so a gradient lives no longer than it must.
        ctx.gradients = gradients
        ctx.anchored = anchor is not None
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the guided step's loss was differentiated twice; call the step again")
        # One call for all: on a GPU a few launches instead of one for every parameter.
        used = [gradient for gradient in gradients if gradient is not None]
        scaled = iter(torch._foreach_mul(used, upstream[0]) if used else [])
        carried = [None if gradient is None else next(scaled) for gradient in gradients]
        return (None, None, torch.zeros_like(upstream[0]) if ctx.anchored else None, *carried)
