"""Train-mode BatchNorm whose second derivative is one kernel call, one reduction and one affine combination.

PyTorch writes BatchNorm's double backward as some twenty passes over tensors of the activation's size. Per channel,
with n elements, x^ the normalised input, s = 1 / sqrt(var + eps), weight w, incoming gradient v, the first backward is

    P(v) = w s (v - mean(v) - x^ mean(v x^))

P is linear in v and self-adjoint, so the gradient for v of <u, P(v)> is P(u): the ordinary backward kernel, applied to
u. That kernel's other outputs are the sums of u and of u x^. The gradient for x is, per channel,

    -(w s^2 / n) { <v,x^> u + <u,x^> v + (K - 2 <u,x^><v,x^> / n) x^ - (<u> <v,x^> + <v> <u,x^>) / n }
    K = <u,v> - <u><v> / n - <u,x^><v,x^> / n,   and  s K  for the weight,

where <a> and <a,b> are sums over the channel. Exact: it is the same derivative in fewer passes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, through `BatchNorm` where that applies."""
    several = inputs.numel() > inputs.shape[1]  # of one value a channel PyTorch says what is wrong
    if training and several and weight is not None and bias is not None and torch.is_grad_enabled():
        return BatchNorm.apply(inputs, weight, bias, running_mean, running_var, momentum, eps)
    return F.batch_norm(inputs, running_mean, running_var, weight, bias, training, momentum, eps)


class BatchNorm(torch.autograd.Function):
    """Inputs [B, C, ...], weight and bias [C]; running statistics [C] (or None) are updated in place."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_variance: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        outputs, mean, scale = torch.native_batch_norm(
            inputs, weight, bias, running_mean, running_variance, True, momentum, eps
        )
        ctx.eps = eps
        ctx.save_for_backward(inputs, weight, mean, scale)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, scale = ctx.saved_tensors
        gradients = BatchNormBackward.apply(upstream[0], inputs, weight, mean, scale, ctx.eps)
        return (*gradients, None, None, None, None)


class BatchNormBackward(torch.autograd.Function):
    """P(v), <v,x^> and <v>: the gradients of inputs, weight and bias. Differentiable once more."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, inputs: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient, v_x, v_sum = backward_kernel(v, inputs, weight, mean, scale, eps)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(v, inputs, weight, mean, scale, v_x, v_sum)
        return gradient, v_x, v_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, for_weight: Tensor | None, for_bias: Tensor | None) -> tuple[Any, ...]:
        v, inputs, weight, mean, scale, v_x, v_sum = ctx.saved_tensors
        shape = [1, -1] + [1] * (inputs.dim() - 2)
        n = inputs.numel() // inputs.shape[1]
        if u is None:
            u = torch.zeros_like(v)
        for_v, u_x, u_sum = backward_kernel(u, inputs, weight, mean, scale, ctx.eps)
        dims = [dim for dim in range(inputs.dim()) if dim != 1]
        # Not u * v: in bf16 the product would be rounded before the sum, and the weight's gradient with it.
        k = (u.to(scale.dtype) * v).sum(dims) - (u_sum * v_sum + u_x * v_x) / n
        of_u, of_v, of_x, constant = input_factors(weight, scale, n, (u_sum, u_x), (v_sum, v_x), k, for_weight)
        if for_weight is not None:
            for_v = for_v + for_weight.view(shape) * (inputs - mean.view(shape)) * scale.view(shape)
        if for_bias is not None:
            for_v = for_v + for_bias.view(shape)
        of_x = of_x * scale
        for_x = torch.addcmul((constant - of_x * mean).view(shape), u, of_u.view(shape))
        for_x = for_x.addcmul_(v, of_v.view(shape)).addcmul_(inputs, of_x.view(shape)).to(inputs.dtype)
        return for_v, for_x, (scale * k).to(weight.dtype), None, None, None


def input_factors(
    weight: Tensor,
    scale: Tensor,
    n: int | Tensor,
    sums_u: tuple[Tensor, Tensor],
    sums_v: tuple[Tensor, Tensor],
    k: Tensor,
    for_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Factors [C] of u, v and x^, and a constant [C], whose sum is the gradient for x.

    Args:
        sums_u, sums_v: (<u>, <u,x^>) and (<v>, <v,x^>), each [C].
        k: K above.
        for_weight: gradient [C] of the first backward's <v,x^>, or None.
    """
    (u_sum, u_x), (v_sum, v_x) = sums_u, sums_v
    common = -weight * scale.square() / n
    of_u, of_v = common * v_x, common * u_x
    of_x = common * (k - 2 * u_x * v_x / n)
    constant = -common * (u_sum * v_x + v_sum * u_x) / n
    if for_weight is not None:
        # d/dx of for_weight <v,x^>.
        of_v = of_v + scale * for_weight
        of_x = of_x - scale * for_weight * v_x / n
        constant = constant - scale * for_weight * v_sum / n
    return of_u, of_v, of_x, constant


def backward_kernel(
    v: Tensor, inputs: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """P(v) [B, C, ...], <v,x^> [C] and <v> [C]."""
    return torch.ops.aten.native_batch_norm_backward(
        v, inputs, weight, None, None, mean, scale, True, eps, [True, True, True]
    )
