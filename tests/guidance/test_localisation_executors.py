"""The CUB networks' guided steps under every executor: the eager numbers, the network's own losses included."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import random_sample, small_sat
from test_executors import MAKERS, assert_equal_steps, with_executor
from torch import nn

from provscale.errors import UserError
from provscale.guidance.executors.eager import EagerExecutor
from provscale.guidance.split_batch import refuse_batch_statistics
from provscale.guidance.step import GuidedStep
from provscale.models import VGG16CAM
from provscale.second_derivatives.recompute import recompute_activations


def vgg() -> nn.Module:
    torch.manual_seed(0)
    return VGG16CAM(5)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("build", [small_sat, vgg])
def test_executors_agree(build, maker) -> None:
    network = build()
    own = {"loss_area", "loss_norm"} if build is small_sat else set()
    steps = [with_executor(network, EagerExecutor()), with_executor(copy.deepcopy(network), MAKERS[maker]())]
    size = 32 if build is small_sat else 16
    for number in range(2 if build is small_sat else 1):
        found = []
        for step in steps:
            torch.manual_seed(number)  # drop path
            found.append(step(random_sample(2, size=size, seed=number)))
            found[-1]["loss"].backward()
        assert found[0].keys() == {"loss", "loss_cls", "loss_guidance"} | own
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-8)
        assert_equal_steps(steps[1], steps[0], 1e-5)


def test_own_losses_are_part_of_the_total_and_of_the_gradients() -> None:
    """Against plain autograd of the sum written out here, without drop path."""
    network = small_sat(drop_path_rate=0.0).train()
    sample = random_sample(2, size=32)
    step = GuidedStep(network, 0.5)
    losses = step(sample)
    losses["loss"].backward()
    parts = losses["loss_cls"] + 0.5 * losses["loss_guidance"] + losses["loss_area"] + losses["loss_norm"]
    torch.testing.assert_close(losses["loss"], parts)
    found = {name: value.grad.clone() for name, value in network.named_parameters()}
    inputs = sample.inputs.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits, own = network(inputs)
    scores = [logits.gather(1, sample.targets[:, k : k + 1]).sum() for k in (0, 1)]
    of_a, of_b = (torch.autograd.grad(score, inputs, create_graph=True)[0] for score in scores)
    mask, weight = sample.provenance_mask, sample.mixing_weight
    cross_entropy = -(logits.log_softmax(1).gather(1, sample.targets) * torch.stack([weight, 1 - weight], 1)).sum(1)
    outside = ((1 - mask) * of_a + mask * of_b) * sample.is_synthetic[:, None, None, None]
    total = cross_entropy.mean() + 0.5 * outside.square().sum() / len(sample) + own["loss_area"] + own["loss_norm"]
    torch.testing.assert_close(total, losses["loss"], rtol=1e-5, atol=0)
    expected = torch.autograd.grad(total, list(network.parameters()))
    for name, value in zip(found, expected, strict=True):
        assert (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-8, name


def test_checkpointed_activations_give_the_same_step() -> None:
    """The masked blocks run as ever, the others through the recomputing forward."""
    steps = [GuidedStep(small_sat().train(), 0.5) for _ in range(2)]
    assert recompute_activations(steps[1].network) == 3
    for step in steps:
        torch.manual_seed(0)
        step(random_sample(2, size=32))["loss"].backward()
    assert_equal_steps(steps[1], steps[0], 1e-5)


def test_a_loss_on_the_batch_is_not_split() -> None:
    with pytest.raises(UserError, match=r"guidance\.split_batch: .*loss_area.* whole batch"):
        refuse_batch_statistics(small_sat().train())
    refuse_batch_statistics(small_sat().eval())
