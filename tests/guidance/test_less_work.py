"""Guidance every k-th step, and one of two soft-label terms: the same expectation."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from provscale.command_line import parse
from provscale.errors import UserError
from provscale.guidance.loss import guidance_loss
from provscale.guidance.objective import Objective
from provscale.guidance.options import GuidanceOptions
from provscale.guidance.sampled_term import draw_first, one_term
from provscale.guidance.schedule import alpha_at
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample


def soft_sample(batch: int = 3) -> Sample:
    generator = torch.Generator().manual_seed(0)
    sample = Sample.real(torch.randn(batch, 2, 4, 4, generator=generator).double(), torch.zeros(batch).long())
    sample.targets = torch.tensor([[0, 1], [2, 0], [1, 1]])[:batch]
    sample.mixing_weight = torch.full((batch,), 0.5)
    sample.provenance_mask = (torch.rand(batch, 1, 4, 4, generator=generator) > 0.4).float()
    sample.is_synthetic = torch.tensor([True, True, False])[:batch]
    sample.guided = True
    return sample


ONE_TERM = Objective(GuidanceOptions(sampled_term="sample"))


def network(norm: bool) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(nn.Conv2d(2, 4, 3), *middle, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()


def penalty(model: nn.Module, sample: Sample) -> torch.Tensor:
    inputs = sample.inputs.clone().requires_grad_()
    return guidance_loss(model(inputs), inputs, sample)


def test_the_mean_over_all_draws_of_each_sample_is_the_full_loss():
    """All 2^3 draws, each with probability 1/8; samples do not interact in this network."""
    model, sample = network(norm=False), soft_sample()
    draws = [torch.tensor(draw) for draw in itertools.product([True, False], repeat=len(sample))]
    mean = sum(2 * penalty(model, one_term(sample, draw)) for draw in draws) / len(draws)
    torch.testing.assert_close(mean, penalty(model, sample), rtol=1e-12, atol=0)
    assert any(abs((2 * penalty(model, one_term(sample, d)) / mean).item() - 1) > 0.01 for d in draws)


def test_the_mean_over_both_draws_of_a_batch_is_the_full_loss_under_batch_norm():
    model, sample = network(norm=True), soft_sample()
    draws = [torch.full((len(sample),), first) for first in (True, False)]
    mean = sum(2 * penalty(model, one_term(sample, draw)) for draw in draws) / 2
    torch.testing.assert_close(mean, penalty(model, sample), rtol=1e-12, atol=0)


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_draws_are_even_and_follow_the_seed(per):
    """The number of heads in 4000 fair draws has standard deviation sqrt(4000)/2 = 32: 5 of them are 158."""
    sample = soft_sample(1)
    torch.manual_seed(0)
    draws = torch.cat([draw_first(sample, per) for _ in range(4000)])
    torch.manual_seed(0)
    again = torch.cat([draw_first(sample, per) for _ in range(4000)])
    assert abs(int(draws.sum()) - 2000) < 158
    assert torch.equal(draws, again)
    together = draw_first(soft_sample(3), "batch")
    assert together.shape == (3,)
    assert together.unique().numel() == 1


def test_the_step_uses_one_drawn_term():
    model, sample = network(norm=False), soft_sample()
    torch.manual_seed(5)
    losses, _ = ONE_TERM(model, list(model.parameters()), sample, 0.1)
    torch.manual_seed(5)
    expected = 2 * penalty(model, one_term(sample, draw_first(sample, "sample")))
    torch.testing.assert_close(losses["loss_guidance"], expected.detach())
    torch.testing.assert_close(losses["loss"], losses["loss_cls"] + 0.1 * losses["loss_guidance"])


def test_hard_labels_have_one_term_anyway():
    model, sample = network(norm=False), soft_sample()
    sample.targets = sample.targets[:, :1]
    losses, _ = ONE_TERM(model, list(model.parameters()), sample, 1.0)
    torch.testing.assert_close(losses["loss_guidance"], penalty(model, sample).detach())


def test_alpha_of_every_kth_step():
    assert [alpha_at(step, 0.1, 3) for step in range(7)] == pytest.approx([0.3, 0, 0, 0.3, 0, 0, 0.3])
    assert [alpha_at(step, 0.1, 1) for step in range(3)] == [0.1] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance.every", "0"], "guidance.every"),
        (["--guidance.sampled_term", "sample", "--guidance.mask", "none"], "guidance.sampled_term"),
        (["--guidance.split_batch", "true", "--guidance.executor", "compiled"], "guidance.split_batch"),
        (["--train.checkpoint_activations", "true", "--guidance.executor", "compiled"], "checkpoint_activations"),
    ],
)
def test_combinations_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(arguments)


def test_the_step_refuses_terms_that_overlap():
    with pytest.raises(UserError, match="overlap"):
        GuidedStep(network(norm=False), 0.1, mask="none", sampled_term="sample")
