"""The package's attention against finite differences and PyTorch's own double backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from provscale.second_derivatives import attention as module
from provscale.second_derivatives.attention import attention, twice_differentiable_attention
from provscale.second_derivatives.substitute import FastSecondDerivatives


def heads(length: int, width: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """[2, 2, length, width], of a memory order that attention layers give it."""
    return torch.randn(2, length, 2, width, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("scale", [None, 0.3])
def test_against_finite_differences(scale):
    torch.manual_seed(0)
    tensors = (heads(2), heads(4), heads(4, 2))

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return attention(*tensors, scale=scale)

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


def double_backward(function, tensors, upstream, outer) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (*tensors, upstream)]
    with twice_differentiable_attention():
        outputs = function(*leaves[:3])
    first = torch.autograd.grad(outputs, leaves[:3], leaves[3].to(outputs.dtype), create_graph=True)
    score = sum((one * weight.to(one.dtype)).sum() for one, weight in zip(first, outer, strict=True))
    return [outputs, *first, *torch.autograd.grad(score + outputs.sum(), leaves)]


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_the_numbers_of_pytorchs_double_backward(dtype, allowed):
    """bf16 keeps 8 bits: PyTorch computes in FP32 and rounds outputs, ours rounds the products' operands too."""
    torch.manual_seed(0)
    tensors = [heads(7, 8, dtype) for _ in range(3)]
    upstream, *outer = (heads(7, 8, dtype).detach() for _ in range(4))
    found = double_backward(attention, tensors, upstream, outer)
    expected = double_backward(F.scaled_dot_product_attention, tensors, upstream, outer)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype == dtype
        assert mine.shape == theirs.shape
        assert float((mine - theirs).detach().double().norm()) <= allowed * float(theirs.detach().double().norm())


def test_autocast_gives_pytorchs_types_and_values():
    """Weights and outputs each keep 8 bits, so an output is off by 2^-7 <p,|v|> at most."""
    torch.manual_seed(0)
    tensors = [heads(5, 8, torch.float32) for _ in range(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16), twice_differentiable_attention():
        expected = F.scaled_dot_product_attention(*tensors)
        found = attention(*tensors)
        size = F.scaled_dot_product_attention(*tensors[:2], tensors[2].abs())
    assert found.dtype == expected.dtype
    assert bool(((found - expected).abs() <= 2**-7 * size).all())


def names(tensor: torch.Tensor) -> set[str]:
    """Of the operations that `tensor` was computed by."""
    waiting, found = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.add(type(node).__name__)
            waiting += [next_node for next_node, _ in node.next_functions]
    return found


def test_it_is_used_without_mask_and_dropout_where_a_gradient_can_follow():
    torch.manual_seed(0)
    query, key, value = (heads(4) for _ in range(3))
    mask = torch.tensor([[True, False, True, True]])
    with FastSecondDerivatives(), twice_differentiable_attention():
        assert "AttentionBackward" in names(F.scaled_dot_product_attention(query, key, value))
        for arguments in ({"attn_mask": mask}, {"is_causal": True}, {"dropout_p": 0.1}):
            assert "AttentionBackward" not in names(F.scaled_dot_product_attention(query, key, value, **arguments))
        positional = F.scaled_dot_product_attention(query, key, value, mask, 0.0, False)
        three = F.scaled_dot_product_attention(query[0], key[0], value[0])
        with torch.no_grad():
            assert F.scaled_dot_product_attention(query, key, value).grad_fn is None
    torch.testing.assert_close(positional, F.scaled_dot_product_attention(query, key, value, mask))
    torch.testing.assert_close(three, F.scaled_dot_product_attention(query, key, value)[0])


def test_grouped_queries_are_pytorchs():
    query, key = torch.randn(2, 4, 3, 5, requires_grad=True), torch.randn(2, 2, 3, 5)
    expected = F.scaled_dot_product_attention(query, key, key, enable_gqa=True)
    torch.testing.assert_close(attention(query, key, key, enable_gqa=True), expected)


@pytest.mark.parametrize("spread", [1, 3])
def test_bf16_against_float64(spread):
    """DeiT-S's heads, weights flat or peaked: outputs and both derivatives, at most 4e-3 of the norm (2^-8)."""
    torch.manual_seed(0)
    tensors = [(spread * heads(197, 64)).bfloat16().double() for _ in range(2)] + [heads(197, 64).bfloat16().double()]
    upstream, *outer = (heads(197, 64).detach().bfloat16().double() for _ in range(4))
    expected = double_backward(attention, tensors, upstream, outer)
    low = [tensor.detach().bfloat16() for tensor in tensors]
    found = double_backward(attention, low, upstream.bfloat16(), outer)
    for name, mine, exact in zip(("out", "q", "k", "v", "qq", "kk", "vv", "oo"), found, expected, strict=True):
        error = float((mine - exact).detach().norm() / exact.detach().norm())
        print(spread, name, f"{error:.1e}")
        assert error < 4e-3, name


def test_heads_in_groups_give_the_same_numbers(monkeypatch):
    """Three groups of 4 heads, the last one short."""
    torch.manual_seed(0)
    tensors = (heads(5), heads(7), heads(7, 2))
    upstream = torch.randn(2, 2, 5, 2, dtype=torch.float64, requires_grad=True)
    outer = [torch.randn_like(tensor) for tensor in tensors]
    expected = double_backward(attention, tensors, upstream, outer)
    monkeypatch.setattr(module, "GROUP", 3 * 5 * 7)
    for found, value in zip(double_backward(attention, tensors, upstream, outer), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_matrix_of_a_head_is_kept(dtype):
    """Between the passes only tensors of the size of q, k and v live, for the first derivative and the second."""
    tensors = [heads(64, 8, dtype).detach().requires_grad_() for _ in range(3)]
    largest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = attention(*tensors)
        torch.autograd.grad(outputs.sum(), tensors, create_graph=True)
    assert largest == tensors[0].numel()
