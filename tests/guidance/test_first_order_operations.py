"""Unguided steps compute no second derivative; operations without one are refused in guided steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from networks import random_sample, small_vit
from plain_steps import OnceDifferentiable, plain_step
from torch.utils._python_dispatch import TorchDispatchMode

from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample

ALPHA = 0.5


def without_synthetic(sample: Sample) -> Sample:
    sample.is_synthetic, sample.guided = torch.zeros_like(sample.is_synthetic), False
    return sample


@pytest.mark.parametrize("reason", ["alpha 0", "no synthetic sample"])
def test_unguided_steps_compute_no_second_derivative(reason: str) -> None:
    """A network with none trains, and the inputs are no leaf of the graph."""
    sample = random_sample(1)
    alpha = 0.0 if reason == "alpha 0" else ALPHA
    if alpha:
        sample = without_synthetic(sample)
    seen = []
    torch.manual_seed(0)
    network = OnceDifferentiable()
    expected = plain_step(copy.deepcopy(network), sample, alpha=0.0)  # the same sums in the same order
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].requires_grad))
    losses = GuidedStep(network, alpha)(sample)
    losses["loss"].backward()
    assert seen == [False]
    assert losses["loss_guidance"].item() == 0.0
    assert torch.equal(losses["loss"].detach(), expected)


def test_a_first_order_operation_is_refused_at_the_first_guided_step() -> None:
    """autograd.grad(loss, parameters) alone would return gradients without that operation's second derivative."""
    step = GuidedStep(OnceDifferentiable(), ALPHA)
    step(without_synthetic(random_sample(1)))
    with pytest.raises(
        UserError, match=r"cannot be differentiated twice .*SquareBackward.*guidance\.alpha 0"
    ) as caught:
        step(random_sample(1))
    assert "\n" not in str(caught.value)


# ---- attention ---------------------------------------------------------------------------------------------------
class Operations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def attention_operations() -> Iterator[set[str]]:
    found: set[str] = set()
    with Operations() as operations:
        yield found
    found.update(name for name in operations.names if "scaled_dot_product" in name)


def test_attention_is_fused_unless_guided() -> None:
    sample = random_sample(2, 32)
    with attention_operations() as default:
        small_vit()(sample.inputs)
    assert any("flash" in name for name in default)
    for alpha, batch in ((0.0, sample), (ALPHA, without_synthetic(random_sample(2, 32)))):
        with attention_operations() as unguided:
            GuidedStep(small_vit(), alpha)(batch)
        assert any("flash" in name for name in unguided)
        assert not any("math" in name for name in unguided)
    with attention_operations() as predicted:
        GuidedStep(small_vit(), ALPHA)(sample, outputs=frozenset({"input_gradient", "saliency"}))
    assert any("flash" in name for name in predicted)
    assert not any("math" in name for name in predicted)
    with attention_operations() as guided:
        GuidedStep(small_vit(), ALPHA)(sample)
    assert not any("flash" in name or "efficient" in name for name in guided)
    assert torch.backends.cuda.flash_sdp_enabled()  # the setting is the step's own
