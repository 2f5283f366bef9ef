"""The package's GELU against finite differences and PyTorch's own double backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from provscale.second_derivatives.gelu import gelu
from provscale.second_derivatives.substitute import FastSecondDerivatives


def test_against_finite_differences() -> None:
    """`gradgradcheck` compares with central differences of the first derivative."""
    inputs = torch.linspace(-4, 4, 15, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gelu, inputs)
    assert torch.autograd.gradgradcheck(gelu, inputs)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_numbers_of_pytorchs_double_backward(dtype: torch.dtype, relative: float) -> None:
    torch.manual_seed(0)
    values, upstream, outer = (2 * torch.randn(200, dtype=torch.float64).to(dtype) for _ in range(3))
    found = []
    for function in (F.gelu, gelu):
        inputs, v = values.clone().requires_grad_(), upstream.clone().requires_grad_()
        outputs = function(inputs)
        (first,) = torch.autograd.grad(outputs, inputs, v, create_graph=True)
        found.append([outputs, first, *torch.autograd.grad(first, [inputs, v], outer)])
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert mine.dtype == dtype
        assert float((mine - theirs).detach().norm()) <= relative * float(theirs.detach().norm())


def test_it_is_used_for_the_exact_form_where_a_gradient_can_follow() -> None:
    inputs = torch.randn(3, requires_grad=True)
    with FastSecondDerivatives():
        assert type(nn.GELU()(inputs).grad_fn).__name__ == "GeluBackward"
        assert type(nn.GELU("tanh")(inputs).grad_fn).__name__ == "GeluBackward0"
        torch.testing.assert_close(nn.GELU("tanh")(inputs), F.gelu(inputs.detach(), approximate="tanh"))
        with torch.no_grad():
            assert F.gelu(inputs).grad_fn is None
