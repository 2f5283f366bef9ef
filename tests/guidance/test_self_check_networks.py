"""Networks without a second derivative, or without anything to train, are refused by the self-check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import CLASSES, random_sample, small_cnn
from plain_steps import OnceDifferentiable
from test_self_check import ALPHA, check
from torch import Tensor, nn

from provscale.engine import check_supported
from provscale.errors import UserError
from provscale.guidance.self_check import plain_gradients
from provscale.guidance.step import GuidedStep


class NoDoubleBackward(torch.autograd.Function):
    """A compiled operation's way: its backward raises when it is itself to be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Raises.apply(gradient)


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("does not support double backward\nand a second line")


class Wrapped(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(3, 4, 3), function
        self.last = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.function(self.first(inputs)))


ONCE = {
    "once_differentiable": (OnceDifferentiable, "SquareBackward"),
    "raises": (lambda: Wrapped(NoDoubleBackward.apply), "does not support double backward"),
}


@pytest.mark.parametrize("kind", ONCE)
def test_networks_without_second_derivative_are_refused(kind: str) -> None:
    build, reason = ONCE[kind]
    with pytest.raises(UserError, match=rf"model: the network cannot be differentiated twice .*{reason}") as caught:
        check(build(), sample=random_sample(1))
    assert "\n" not in str(caught.value)
    assert "guidance.alpha 0" in str(caught.value)
    with pytest.raises(UserError, match=reason):
        plain_gradients(GuidedStep(build(), ALPHA), random_sample(1))


@pytest.mark.parametrize("kind", ONCE)
def test_they_pass_as_a_baseline(kind: str) -> None:
    check(ONCE[kind][0](), alpha=0.0, sample=random_sample(1))


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
@pytest.mark.parametrize("ignore", [lambda x: x.detach(), lambda x: torch.zeros_like(x)])
def test_logits_that_ignore_the_inputs_are_refused(ignore: Callable[[Tensor], Tensor], alpha: float) -> None:
    network = nn.Sequential(Wrapped(ignore))
    with pytest.raises(UserError, match="model: the logits do not depend on the inputs") as caught:
        check(network, alpha=alpha, sample=random_sample(1))
    assert "\n" not in str(caught.value)


def test_an_error_of_the_forward_pass_is_no_matter_of_derivatives() -> None:
    """Inputs of another size than the network's: PyTorch's own error, not a sentence about second derivatives."""
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        plain_gradients(GuidedStep(OnceDifferentiable(), ALPHA), random_sample(1, size=8))


class UnusedFirst(nn.Module):
    """Its first parameters take no part, as in networks with an optional token."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.network = nn.Parameter(torch.zeros(3)), small_cnn()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


def test_the_check_takes_the_first_parameter_that_takes_part() -> None:
    check(UnusedFirst())
    with pytest.raises(UserError, match=r"gradient of 'network\.0\.weight'"):
        check(UnusedFirst(), lambda gradient: gradient / 2)


def test_nothing_to_train_is_refused() -> None:
    network = small_cnn().requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        plain_gradients(GuidedStep(network, ALPHA), random_sample(2))


def test_synchronised_batch_norm() -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(small_cnn())
    check_supported(network, world_size=1)
    with pytest.raises(UserError, match=r"layer '1' is a SyncBatchNorm.*GroupNorm") as caught:
        check_supported(network, world_size=2)
    assert "\n" not in str(caught.value)
    check_supported(small_cnn(), world_size=2)
