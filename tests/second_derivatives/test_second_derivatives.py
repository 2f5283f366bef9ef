"""The package's BatchNorm and convolution against numerical derivatives and against PyTorch's own."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from provscale.guidance.objective import Objective
from provscale.sample import Sample
from provscale.second_derivatives.batch_norm import batch_norm
from provscale.second_derivatives.convolution import convolution
from provscale.second_derivatives.substitute import FastSecondDerivatives


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(5, 3), (3, 3, 4), (2, 3, 3, 2)])
def test_batch_norm_against_finite_differences(shape):
    """`gradgradcheck` compares with central differences of the first derivative."""
    torch.manual_seed(0)
    arguments = (leaf(*shape), leaf(3), leaf(3))

    def run(inputs, weight, bias):
        return batch_norm(inputs, None, None, weight, bias, True)

    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


@pytest.mark.parametrize(
    ("dimensions", "stride", "padding", "dilation", "groups"),
    [(1, 1, 1, 1, 1), (2, 2, 1, 1, 2), (2, (1, 2), (0, 2), (2, 1), 1), (3, 1, 0, 1, 1)],
)
def test_convolution_against_finite_differences(dimensions, stride, padding, dilation, groups):
    torch.manual_seed(0)
    arguments = (leaf(2, 4, *[5] * dimensions), leaf(2, 4 // groups, *[2] * dimensions), leaf(2))

    def run(inputs, weight, bias):
        return convolution(dimensions, inputs, weight, bias, stride, padding, dilation, groups)

    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


def guided_gradients(network: nn.Module, inputs: torch.Tensor, context) -> list[torch.Tensor]:
    inputs = inputs.clone().requires_grad_()
    with context:
        outputs = network(inputs)
    (gradient,) = torch.autograd.grad(outputs[:, 0].sum(), inputs, create_graph=True)
    loss = outputs.square().mean() + gradient.square().sum()
    return [outputs, *torch.autograd.grad(loss, list(network.parameters()))]


def network_64() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 6, 3, padding="same"),
        nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6, affine=False), nn.GELU(), nn.Flatten(),
        nn.Linear(150, 4),
    ).double()  # fmt: skip


def test_a_network_gives_the_numbers_of_pytorchs_double_backward():
    from contextlib import nullcontext

    inputs = torch.randn(4, 3, 11, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected_network, network = network_64(), network_64()
    expected = guided_gradients(expected_network, inputs, nullcontext())
    found = guided_gradients(network, inputs, FastSecondDerivatives())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(network.buffers(), expected_network.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_it_is_really_used_and_only_where_a_gradient_can_follow():
    weight = torch.randn(2, 3, 3, 3, requires_grad=True)
    inputs = torch.randn(1, 3, 5, 5)
    with FastSecondDerivatives():
        assert type(F.conv2d(inputs, weight).grad_fn).__name__ == "ConvolutionBackward"
        module = nn.BatchNorm2d(3)
        assert type(module(inputs).grad_fn).__name__ == "BatchNormBackward"
        assert "BatchNormBackward0" in type(module.eval()(inputs).grad_fn).__name__
        with torch.no_grad():
            assert F.conv2d(inputs, weight).grad_fn is None


def test_the_input_gradients_pass_computes_no_weight_gradient(monkeypatch):
    """It would cost as much as the input gradient itself."""
    from provscale.second_derivatives import convolution as module

    masks = []
    original = module.kernel
    monkeypatch.setattr(module, "kernel", lambda *args: masks.append(args[-1]) or original(*args))
    inputs = torch.randn(1, 3, 5, 5, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, requires_grad=True)
    with FastSecondDerivatives():
        outputs = F.conv2d(inputs, weight)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
    assert masks == [(True, False, False)]
    torch.autograd.grad(gradient.square().sum(), weight)
    assert masks[1][1]


def test_autocast_computes_in_its_own_type():
    inputs = torch.randn(1, 3, 5, 5)
    weight = torch.randn(2, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.conv2d(inputs, weight)
        with FastSecondDerivatives():
            found = F.conv2d(inputs, weight)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_one_value_a_channel_is_refused_as_by_pytorch():
    norm = nn.BatchNorm2d(4)
    with FastSecondDerivatives(), pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(leaf(1, 4, 1, 1).float())


def test_pytorchs_own_checkpointing_inside_the_network_works():
    network = timm.create_model("test_resnet", num_classes=3).double()
    sample = Sample.real(torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    sample.is_synthetic, sample.guided = torch.ones(4, dtype=torch.bool), True
    sample.provenance_mask[..., :16] = 0
    found = []
    for enabled in (False, True):
        network.set_grad_checkpointing(enabled)
        found.append(Objective()(network, list(network.parameters()), sample, 1.0)[1])
    for expected, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-10)
