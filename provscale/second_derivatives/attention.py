"""Scaled dot-product attention, softmax(c q k^T) v, with both derivatives written out.

Neither derivative keeps a matrix [N, M] of a head: both compute the weights p anew from q and k. With o the gradient
for the outputs, <a,b> sums over a row and d = o v^T, the first derivative is

    s = p (d - <p,d>)      c s k for q,   c s^T q for k,   p^T o for v

and the second, with g_q, g_k, g_v the gradients for these, a = c (g_q k^T + q g_k^T) and b = p (a - <p,a>),

    b v + p g_v for o,   b^T o for v,   c (t k + s g_k) for q,   c (t^T q + s^T g_q) for k
    t = p (w - <p,w>),   w = (a - <p,a>) (d - <p,d>) + o g_v^T

Exact: w differs from the derivative for p by numbers per row, which cancel in t. Half precisions: products take
operands of that precision and add in FP32, as tensor cores do; what lies between products is FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNEL = F.scaled_dot_product_attention  # fetched before any mode intercepts it
HALF = (torch.float16, torch.bfloat16)
GROUP = 2**26
"""Elements of all matrices [N, M] that are worked on at a time: 256 MiB of FP32."""


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
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(device, enabled=False):
        # The batch and the heads as one dimension, copied once: every product would copy them again.
        outputs = Attention.apply(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), factor)
    return outputs.unflatten(0, query.shape[:2])


class Attention(torch.autograd.Function):
    """softmax(c q k^T) V for q [G, N, E], k [G, M, E], v [G, M, V] and a number c."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, c: float) -> Tensor:
        ctx.c = c
        ctx.save_for_backward(q, k, v)
        return grouped(lambda q, k, v: (product(weights_of(q, k, c), v, q.dtype),), q, k, v)[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (*AttentionBackward.apply(*ctx.saved_tensors, upstream[0], ctx.c), None)


class AttentionBackward(torch.autograd.Function):
    """The gradients for q, k and v from that for the outputs, o [G, N, V]; differentiable once more."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, o: Tensor, c: float) -> tuple[Tensor, ...]:
        ctx.c = c
        ctx.save_for_backward(q, k, v, o)
        return grouped(partial(first_derivative, c=c), q, k, v, o)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_q: Tensor, for_k: Tensor, for_v: Tensor) -> tuple[Tensor | None, ...]:
        function = partial(second_derivative, c=ctx.c)
        gradients = grouped(function, *ctx.saved_tensors, for_q, for_k, for_v)
        return (*gradients, None)


def first_derivative(q: Tensor, k: Tensor, v: Tensor, o: Tensor, c: float) -> tuple[Tensor, ...]:
    p = weights_of(q, k, c)
    to_v = product(p.mT, o, v.dtype)
    s = through_softmax(product(o, v.mT), p).mul_(c)
    return product(s, k, q.dtype), product(s.mT, q, k.dtype), to_v


def second_derivative(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, g_q: Tensor, g_k: Tensor, g_v: Tensor, c: float
) -> tuple[Tensor, ...]:
    """Gradients for q, k, v and o from those for the first derivative's outputs."""
    p = weights_of(q, k, c)
    d = product(o, v.mT)
    d -= (p * d).sum(-1, keepdim=True)  # so that p d is the gradient for the scores
    a = add_product(product(g_q, k.mT), q, g_k.mT).mul_(c)
    a -= (p * a).sum(-1, keepdim=True)
    b = p * a  # the gradient for o v^T
    to_v = product(b.mT, o, v.dtype)
    to_o = add_product(product(b, v), p, g_v).to(o.dtype)
    s = p * d
    to_q, to_k = product(s, g_k), product(s.mT, g_q)
    s = through_softmax(add_product(a.mul_(d), o, g_v.mT), p)
    to_q, to_k = add_product(to_q, s, k).mul_(c), add_product(to_k, s.mT, q).mul_(c)
    return to_q.to(q.dtype), to_k.to(k.dtype), to_v, to_o


def grouped(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """`function` on groups of heads whose matrices [N, M] take at most `GROUP` elements, its outputs joined."""
    matrix = tensors[0].shape[1] * tensors[1].shape[1]
    size = max(1, GROUP // matrix)
    if size >= tensors[0].shape[0]:
        return function(*tensors)
    parts = [function(*group) for group in zip(*(tensor.split(size) for tensor in tensors), strict=True)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def weights_of(q: Tensor, k: Tensor, c: float) -> Tensor:
    """softmax(c q k^T), at least FP32."""
    return torch.softmax(product(q, k.mT).mul_(c), -1)


def through_softmax(gradient: Tensor, p: Tensor) -> Tensor:
    """p (g - <p,g>): the gradient for the scores from that for the weights."""
    return torch._softmax_backward_data(gradient, p, -1, p.dtype)


def product(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Batched a b, of `dtype` or else at least FP32.

    Where either operand is half precision, both are rounded to it and multiplied by tensor cores that add in FP32.
    """
    half = next((x.dtype for x in (a, b) if x.dtype in HALF), None)
    if half is None:
        result = torch.bmm(a, b)
    elif a.device.type == "cuda":
        result = torch.bmm(a.to(half), b.to(half), out_dtype=torch.float32)
    else:
        result = torch.bmm(a.to(half).float(), b.to(half).float())
    return result if dtype is None else result.to(dtype)


def add_product(sum_: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`sum_` + a b, in place where the precision is one."""
    if a.dtype in HALF or b.dtype in HALF:
        return sum_.add_(product(a, b))
    return sum_.baddbmm_(a, b)
