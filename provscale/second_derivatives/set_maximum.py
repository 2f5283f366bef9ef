"""The maximum over a dimension, with a gradient that costs one product however often it is taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SetMaximum(torch.autograd.Function):
    """`apply(values, dim)` is `values.amax(dim)`; equal largest values share the gradient equally, as there.

    PyTorch looks for the largest values again in every backward pass; here their shares are kept instead of the values.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, dim: int) -> Tensor:
        largest = values.amax(dim, keepdim=True)
        shares = (values == largest).to(values.dtype)
        shares.div_(shares.sum(dim, keepdim=True))
        ctx.dim = dim
        ctx.save_for_backward(shares)
        return largest.squeeze(dim)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (shares,) = ctx.saved_tensors
        return upstream[0].unsqueeze(ctx.dim) * shares, None
