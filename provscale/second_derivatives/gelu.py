"""GELU whose second derivative is one expression in place of PyTorch's chain of products.

With phi and Phi the standard normal density and distribution, gelu(x) = x Phi(x), gelu'(x) = Phi(x) + x phi(x) and
gelu''(x) = (2 - x^2) phi(x). For the first backward v gelu'(x), and u its gradient: for v it is the same kernel applied
to u, for x it is u v gelu''(x). Exact.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

KERNEL = F.gelu  # fetched before any mode intercepts it


def gelu(inputs: Tensor, approximate: str = "none") -> Tensor:
    """`torch.nn.functional.gelu`, through `Gelu` where a second derivative of the exact form may follow."""
    if approximate != "none" or not (inputs.requires_grad and torch.is_grad_enabled()):
        return KERNEL(inputs, approximate=approximate)
    return Gelu.apply(inputs)


class Gelu(torch.autograd.Function):
    """Inputs and outputs of any one shape and floating type."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return KERNEL(inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return GeluBackward.apply(upstream[0], *ctx.saved_tensors)


class GeluBackward(torch.autograd.Function):
    """v gelu'(x), differentiable once more."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(v, inputs)
        return torch.ops.aten.gelu_backward(v, inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None]:
        v, inputs = ctx.saved_tensors
        for_v = torch.ops.aten.gelu_backward(u, inputs) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return for_v, None
        # In place: on large activations fresh memory costs more than the arithmetic.
        square = inputs.square()
        density = square.mul(-0.5).exp_()
        for_x = density.mul_(square.neg_().add_(2)).mul_(u).mul_(v).mul_(1 / math.sqrt(2 * math.pi))
        return for_v, for_x
