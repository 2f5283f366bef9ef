"""BatchNorm over the rows of a list that are there: the numbers of leaving the others out, in shapes that stay fixed.

With u, v gradients, x^ the normalised input (0 in absent rows) and n the number of rows that are there, the derivatives
are those of `guidance/batch_norm.py`, where the formulas are; sums run over present rows only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from provscale.second_derivatives.batch_norm import input_factors


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` on a list [N, C] of which, if `present` [N] (bool) is given, only those rows count.

    Parameters, buffers and their updates are those of `nn.BatchNorm1d` on `inputs[present]`; no number leaves the
    device. In train mode absent rows are ignored, whatever finite values they hold, and come out as 0. A batch without
    any row changes no running statistics; one of a single row, which `nn.BatchNorm1d` refuses, gives the bias.
    """

    def forward(self, inputs: Tensor, present: Tensor | None = None) -> Tensor:
        if present is None or not self.training:
            return super().forward(inputs)
        there = present[:, None].to(self.weight.dtype)
        with torch.no_grad():
            n = there.sum().clamp(min=1)
            mean = (inputs * there).sum(dim=0) / n
            variance = (inputs - mean).mul_(there).square_().sum(dim=0) / n
            self.update(mean, variance * (n / (n - 1).clamp(min=1)), there.amax())
            scale = torch.rsqrt(variance + self.eps)
        return MaskedBatchNorm.apply(inputs, self.weight, self.bias, there, n, mean, scale)

    def update(self, mean: Tensor, variance: Tensor, some: Tensor) -> None:
        """Moves the running statistics [C] towards those of a batch (unbiased variance), unless `some` is 0."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(value.to(running.dtype), some.to(running.dtype) * rate)


class MaskedBatchNorm(torch.autograd.Function):
    """Inputs [N, C], weight and bias [C], there [N, 1], 1 or 0; n, mean, scale (1 / deviation) of the inputs."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, there: Tensor, n: Tensor, mean: Tensor, scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, there, n, mean, scale)
        return (inputs - mean).mul_(scale * weight).add_(bias).mul_(there).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (*MaskedBatchNormBackward.apply(upstream[0], *ctx.saved_tensors), None, None, None, None)


class MaskedBatchNormBackward(torch.autograd.Function):
    """P(v), <v,x^> and <v>: the gradients of inputs, weight and bias. Differentiable once more."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, inputs: Tensor, weight: Tensor, there: Tensor, n: Tensor, mean: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = normalised(inputs, there, mean, scale)
        gradient, v_x, v_sum = first_derivative(v * there, x, weight * scale, there, n)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(v, inputs, weight, there, n, mean, scale, v_x, v_sum)
        return gradient.to(inputs.dtype), v_x, v_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, for_weight: Tensor | None, for_bias: Tensor | None) -> tuple[Any, ...]:
        v, inputs, weight, there, n, mean, scale, v_x, v_sum = ctx.saved_tensors
        dtype = v.dtype
        x, v = normalised(inputs, there, mean, scale), v * there
        u = torch.zeros_like(v) if u is None else u * there
        for_v, u_x, u_sum = first_derivative(u, x, weight * scale, there, n)
        k = (u * v).sum(dim=0) - (u_sum * v_sum + u_x * v_x) / n
        of_u, of_v, of_x, constant = input_factors(weight, scale, n, (u_sum, u_x), (v_sum, v_x), k, for_weight)
        if for_weight is not None:
            for_v = for_v.addcmul_(x, for_weight)
        if for_bias is not None:
            for_v = for_v.addcmul_(there, for_bias)
        for_x = (constant * there).addcmul_(u, of_u).addcmul_(v, of_v).addcmul_(x, of_x)
        return for_v.to(dtype), for_x.to(inputs.dtype), (scale * k).to(weight.dtype), None, None, None, None


def normalised(inputs: Tensor, there: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """x^ [N, C], 0 in absent rows."""
    return (inputs - mean).mul_(scale).mul_(there)


def first_derivative(v: Tensor, x: Tensor, factor: Tensor, there: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P(v) [N, C], <v,x^> [C] and <v> [C] for v and x^ that are 0 in absent rows."""
    v_x, v_sum = (v * x).sum(dim=0), v.sum(dim=0)
    gradient = (-factor * v_sum / n) * there
    return gradient.addcmul_(v, factor).addcmul_(x, -factor * v_x / n), v_x, v_sum
