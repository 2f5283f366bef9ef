"""Convolution whose second derivative runs the kernels that libraries tune: forward and weight gradient.

A convolution is linear in its input. With v the incoming gradient of the output, the gradients of <u, dL/dinput> are

    for v:       conv(u, weight)                            the forward kernel
    for weight:  the weight-gradient kernel for input u and output gradient v
    for input:   0

PyTorch writes the second line as a forward convolution whose kernel is as large as the feature map, which
libraries run slowly. Exact: it is the same sum.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FUNCTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
"""Number of spatial dimensions of the functions that `convolution` replaces."""

Geometry = tuple[list[int], list[int], list[int], int]
"""stride, padding, dilation (one number for each spatial dimension) and groups."""


def convolution(
    dimensions: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """`torch.conv1d`, `conv2d` or `conv3d` through `Convolution`; None where that does not apply."""
    if isinstance(padding, str) or input.dim() != dimensions + 2 or not torch.is_grad_enabled():
        return None
    if torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    sizes = [
        [value] * dimensions if isinstance(value, numbers.Integral) else list(value)
        for value in (stride, padding, dilation)
    ]
    # Views, as the engine answers `_will_engine_execute_node` for nodes that are no leaves only.
    bias = None if bias is None else bias.view_as(bias)
    return Convolution.apply(input, weight.view_as(weight), bias, (*sizes, groups))


class Convolution(torch.autograd.Function):
    """Inputs [B, C, ...], weight [K, C / groups, ...], bias [K] or None."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(inputs, weight)
        stride, padding, dilation, groups = geometry
        return torch.convolution(inputs, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        # Of the gradients asked for: the input gradient's pass needs none of the weights', which cost as much.
        # Weight and bias separately: either may be frozen.
        for_weight, for_bias = (
            ctx.needs_input_grad[place] and torch._C._will_engine_execute_node(ctx.next_functions[place][0])
            for place in (1, 2)
        )
        mask = (ctx.needs_input_grad[0], for_weight, for_bias)
        return *ConvolutionBackward.apply(upstream[0], inputs, weight, ctx.geometry, mask), None


class ConvolutionBackward(torch.autograd.Function):
    """The gradients of input, weight and bias that `mask` asks for (None for the others)."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(v, inputs, weight)
        return kernel(v, inputs, weight, geometry, mask)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, u: Tensor | None, for_weight: Tensor | None, for_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        v, inputs, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        needs_v, needs_inputs, needs_weight = ctx.needs_input_grad[:3]
        to_v = to_inputs = to_weight = None

        def forward(values: Tensor, filters: Tensor) -> Tensor:
            return torch.convolution(values, filters, None, stride, padding, dilation, False, [0] * len(stride), groups)

        if u is not None:
            to_v = forward(u, weight) if needs_v else None
            if needs_weight:
                to_weight = kernel(v, u, weight, ctx.geometry, (False, True, False))[1]
        if for_weight is not None:
            if needs_v:
                more = forward(inputs, for_weight)
                to_v = more if to_v is None else to_v + more
            if needs_inputs:
                to_inputs = kernel(v, inputs, for_weight, ctx.geometry, (True, False, False))[0]
        if for_bias is not None and needs_v:
            more = for_bias.view(1, -1, *[1] * (v.dim() - 2)).expand_as(v)
            to_v = more if to_v is None else to_v + more
        return to_v, to_inputs, to_weight, None, None


def kernel(
    v: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry, mask: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """PyTorch's first-order backward of a convolution."""
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        v, inputs, weight, [weight.shape[0]], stride, padding, dilation, False, [0] * len(stride), groups, list(mask)
    )
