"""LayerNorm whose second derivative is two kernel calls, a few row sums and one combination.

PyTorch writes LayerNorm's double backward as a chain of passes over tensors of the activation's size. Per row, with n
elements, x^ the normalised input, s = 1 / sqrt(var + eps), weight w, incoming gradient v and g = w v, let

    Q(g) = s (g - mean(g) - x^ mean(g x^))

The first backward is Q(g) for the input, and summed over rows v x^ for the weight and v for the bias. Q is linear and
self-adjoint, and the derivative of <a,x^> for x is Q(a). With u the gradient of Q(g), the gradients of <u, Q(g)> are

    for v:       w Q(u)                                 the first backward's kernel, applied to u
    for weight:  v Q(u), summed over rows
    for x:       -(s / n) { <g,x^> Q(u) + <u,x^> Q(g) + <Q(u),g> x^ }

where <a,b> are sums over the row. Of the weight's and bias's gradients, with f and h theirs, v gets f x^ + h and x gets
Q(f v). Exact: it is the same derivative in fewer passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

KERNEL = F.layer_norm  # fetched before any mode intercepts it
HALF = (torch.float16, torch.bfloat16)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.layer_norm`, through `LayerNorm` where a second derivative may follow."""
    if not torch.is_grad_enabled() or input.numel() == 0:
        return KERNEL(input, normalized_shape, weight, bias, eps)
    device = input.device.type
    if device != "cpu" and torch.is_autocast_enabled(device):
        # As PyTorch's autocast does, everywhere but on the CPU.
        input = input.float() if input.dtype in HALF else input
        weight, bias = (t.float() if t is not None and t.dtype in HALF else t for t in (weight, bias))
    # Views, as the engine answers `_will_engine_execute_node` for nodes that are no leaves only. Contiguous once, as
    # every kernel would copy it again.
    weight = None if weight is None else weight.view_as(weight)
    bias = None if bias is None else bias.view_as(bias)
    return LayerNorm.apply(input.contiguous(), weight, bias, list(normalized_shape), eps)


class LayerNorm(torch.autograd.Function):
    """Inputs [..., *shape], weight and bias [*shape] or None."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int], eps: float
    ) -> Tensor:
        outputs, mean, scale = torch.native_layer_norm(inputs, shape, weight, bias, eps)
        ctx.shape, ctx.eps = shape, eps
        ctx.save_for_backward(inputs, weight, bias, mean, scale)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias, mean, scale = ctx.saved_tensors
        # Of the gradients asked for: the input gradient's pass needs none of the weights'. `next_functions` has an
        # entry for each tensor among the arguments, so none for an absent weight.
        edges = iter(ctx.next_functions[1:])
        nodes = [None if tensor is None else next(edges)[0] for tensor in (weight, bias)]
        for_weight, for_bias = (node is not None and torch._C._will_engine_execute_node(node) for node in nodes)
        mask = (ctx.needs_input_grad[0], for_weight, for_bias)
        v = upstream[0].contiguous()
        gradients = LayerNormBackward.apply(v, inputs, weight, bias, mean, scale, ctx.shape, ctx.eps, mask)
        return *gradients, None, None


class LayerNormBackward(torch.autograd.Function):
    """The gradients of inputs, weight and bias that `mask` asks for (None for the others). Differentiable once more."""

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        shape: list[int],
        eps: float,
        mask: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.shape, ctx.eps = shape, eps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(v, inputs, weight)
        return kernel(v, inputs, shape, mean, scale, weight, bias, mask)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, u: Tensor | None, for_weight: Tensor | None, for_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        v, inputs, weight = ctx.saved_tensors
        types = [None if t is None else t.dtype for t in (v, inputs, weight)]
        dtype = torch.promote_types(inputs.dtype, torch.float32)  # sums and products of half precisions in FP32
        n = math.prod(ctx.shape)

        def rows(tensor: Tensor) -> Tensor:
            return tensor.to(dtype).reshape(-1, n)

        def flat(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype).reshape(n)

        found = second_derivative(
            None if u is None else rows(u),
            rows(v),
            rows(inputs),
            flat(weight),
            flat(for_weight),
            flat(for_bias),
            ctx.eps,
        )
        shapes = (v.shape, inputs.shape, ctx.shape)
        results = [
            None if t is None else t.reshape(shape).to(t_type)
            for t, shape, t_type in zip(found, shapes, types, strict=True)
        ]
        return (*results, None, None, None, None, None, None)


def second_derivative(
    u: Tensor | None,
    v: Tensor,
    inputs: Tensor,
    weight: Tensor | None,
    for_weight: Tensor | None,
    for_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for v [M, n], inputs [M, n] and weight [n], from u [M, n], f [n] and h [n] of the module's text."""
    n = inputs.shape[1]
    normalised, mean, scale = torch.native_layer_norm(inputs, [n], None, None, eps)

    def q(gradient: Tensor) -> Tensor:
        return kernel(gradient, inputs, [n], mean, scale, None, None, (True, False, False))[0]

    to_v = to_inputs = to_weight = None
    if for_weight is not None:
        to_v = normalised * for_weight
        to_inputs = q(v * for_weight)
    if for_bias is not None:
        to_v = for_bias.expand_as(v) if to_v is None else to_v.add_(for_bias)
    if u is None:
        return to_v, to_inputs, None
    q_u = q(u)
    product = v * q_u
    if weight is None:
        g = v
    else:
        to_weight = product.sum(0)
        product, g = product.mul_(weight), v * weight
    k = product.sum(1, keepdim=True)
    g_x = torch.mul(g, normalised, out=product).sum(1, keepdim=True)
    u_x = torch.mul(u, normalised, out=product).sum(1, keepdim=True)
    g_sum = g.sum(1, keepdim=True)
    # Q(g) written out: no kernel call for it.
    common = scale * (-1 / n)
    of_g = common * scale * u_x
    constant = of_g * g_sum * (-1 / n)
    of_x = torch.addcmul(common * k, of_g, g_x, value=-1 / n)
    combined = torch.addcmul(constant, g, of_g).addcmul_(q_u, common * g_x).addcmul_(normalised, of_x)
    to_inputs = combined if to_inputs is None else to_inputs.add_(combined)
    through = q_u if weight is None else q_u.mul_(weight)
    return through if to_v is None else through + to_v, to_inputs, to_weight


def kernel(
    v: Tensor,
    inputs: Tensor,
    shape: list[int],
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: tuple[bool, bool, bool],
) -> tuple[Any, ...]:
    """PyTorch's first-order backward of LayerNorm; None for what the mask leaves out."""
    return torch.ops.aten.native_layer_norm_backward(v, inputs, shape, mean, scale, weight, bias, list(mask))
