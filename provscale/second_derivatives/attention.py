"""Scaled dot-product attention, softmax(q k^T / sqrt(E)) V, whose second derivative takes few passes over its weights.

PyTorch's MATH path looks for rows that are masked out entirely, also where there is no mask, and scales both q and k;
each of these is differentiated twice. Its softmax has a second derivative of some ten passes. With y = softmax(z), the
incoming gradient v, u the gradient of the first backward y (v - <y,v>), and <a,b> sums over a row, the gradients are

    for v:  y (u - <y,u>)
    for y:  (u - <y,u>) (v - <y,v>)

of which the second differs from the derivative by a number a row, that the softmax's own backward takes away. Exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNEL = F.scaled_dot_product_attention  # fetched before any mode intercepts it
HALF = (torch.float16, torch.bfloat16)


@contextmanager
def twice_differentiable_attention() -> Iterator[None]:
    """Fused attention has no second derivative; PyTorch's MATH path is made of operations that have."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`; PyTorch's own where there is a mask or dropout.

    As PyTorch's MATH path, computes half precisions in FP32 (unless `allow_fp16_bf16_reduction_math_sdp` is set).

    Args:
        query: [B, H, N, E]; other numbers of dimensions are PyTorch's.
        key: [B, H, M, E].
        value: [B, H, M, V].
    """
    fits = query.dim() == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2] and query.numel() > 0
    if attn_mask is not None or dropout_p or is_causal or not fits or not torch.is_grad_enabled():
        return KERNEL(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    dtype = query.dtype
    if dtype in HALF and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed():
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(device, enabled=False):
        # The batch and the heads as one dimension, copied once: every product would copy them again.
        q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        scores = torch.bmm(q * (query.shape[-1] ** -0.5 if scale is None else scale), k.transpose(1, 2))
        outputs = torch.bmm(Softmax.apply(scores), v)
    return outputs.unflatten(0, query.shape[:2]).to(dtype)


class Softmax(torch.autograd.Function):
    """Over the last dimension of any shape.

    The second derivative's gradient for the outputs holds up to a number a row, so it may only meet this backward:
    the outputs' other uses add theirs to it, which changes nothing.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        outputs = torch.softmax(inputs, -1)
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return SoftmaxBackward.apply(upstream[0], *ctx.saved_tensors)


class SoftmaxBackward(torch.autograd.Function):
    """y (v - <y,v>), differentiable once more."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, outputs: Tensor) -> Tensor:
        ctx.save_for_backward(v, outputs)
        return torch._softmax_backward_data(v, outputs, -1, outputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        v, outputs = ctx.saved_tensors
        # In place: on large activations fresh memory costs more than the arithmetic.
        product = outputs * v
        for_outputs = v - product.sum(-1, keepdim=True)
        centred = torch.sub(u, torch.mul(outputs, u, out=product).sum(-1, keepdim=True), out=product)
        return centred * outputs, for_outputs.mul_(centred)
