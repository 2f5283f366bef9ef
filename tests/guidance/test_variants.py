"""Scores and measures of the guidance loss against their formulas, computed from Jacobians in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import CLASSES, random_sample, smooth_network
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from provscale.guidance.executors.compiled import CompiledExecutor
from provscale.guidance.executors.cuda_graph import RecordingExecutor, RerunRecording
from provscale.guidance.loss import guidance_loss
from provscale.guidance.measures import MEASURES
from provscale.guidance.options import GuidanceOptions
from provscale.guidance.scores import SCORES
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample

FORMULAS = {
    "logit": lambda logits, k: logits[k],
    "centred": lambda logits, k: logits[k] - logits.sum() / CLASSES,
    "log_probability": lambda logits, k: logits[k] - logits.exp().sum().log(),
    "summed_log_probabilities": lambda logits, k: logits.sum() - CLASSES * logits.exp().sum().log(),
}


def double(sample: Sample) -> Sample:
    return sample.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def expected_penalty(network: nn.Module, sample: Sample, score: str, measure: str) -> Tensor:
    """One sample at a time, its score's Jacobian by `torch.func`."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(sample)):
        if not sample.is_synthetic[row]:
            continue
        inputs, mask = sample.inputs[row], sample.provenance_mask[row]
        gradients = [
            jacrev(lambda x, k=int(k): FORMULAS[score](network(x[None])[0], k))(inputs) for k in sample.targets[row]
        ]
        outside = (1 - mask) * gradients[0] + (mask * gradients[1] if len(gradients) == 2 else 0)
        if measure == "l1":
            value = outside.abs().sum()
        elif measure == "attribution_share":
            positive = [(inputs * gradient).sum(dim=0).clamp(min=0).sum() for gradient in (outside, *gradients)]
            value = positive[0] / sum(positive[1:])
        else:
            value = (outside**2).sum()
            if measure == "share":
                value = value / sum((gradient**2).sum() for gradient in gradients)
        total = total + value
    return total / len(sample)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("targets", [1, 2], ids=["hard", "soft"])
def test_every_score_and_measure_is_its_formula(targets: int, score: str, measure: str) -> None:
    network, sample = smooth_network().double(), double(random_sample(targets, real=(1,), levels=3))
    inputs = sample.inputs.clone().requires_grad_()
    found = guidance_loss(network(inputs), inputs, sample, GuidanceOptions(score=score, measure=measure))
    torch.testing.assert_close(found, expected_penalty(network, sample, score, measure), rtol=1e-10, atol=0)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("score", SCORES)
def test_parameter_gradients_of_every_variant(score: str, measure: str) -> None:
    """Central differences of the loss along a random direction of all parameters, so short that no element of an L1
    norm passes through zero on the way."""
    network, sample = smooth_network().double(), double(random_sample(2))
    options = {"score": score, "measure": measure}
    step = GuidedStep(network, 1.0, **options)
    losses = step(sample)
    losses["loss"].backward()
    torch.manual_seed(1)
    direction = {name: torch.randn_like(parameter) for name, parameter in network.named_parameters()}
    slope = sum((direction[name] * parameter.grad).sum() for name, parameter in network.named_parameters())

    def total(shift: float) -> Tensor:
        moved = {name: (p + shift * direction[name]).detach() for name, p in network.named_parameters()}
        inputs = sample.inputs.clone().requires_grad_()
        logits = functional_call(network, moved, inputs)
        cross = torch.nn.functional.cross_entropy(logits, sample.targets[:, 0], reduction="none")
        other = torch.nn.functional.cross_entropy(logits, sample.targets[:, 1], reduction="none")
        weight = sample.mixing_weight
        penalty = guidance_loss(logits, inputs, sample, GuidanceOptions(**options))
        return ((weight * cross + (1 - weight) * other).mean() + penalty).detach()

    size = 1e-8
    torch.testing.assert_close((total(size) - total(-size)) / (2 * size), slope.detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("maker", ["traced", "recorded"])
@pytest.mark.parametrize(("score", "measure"), [("centred", "energy"), ("log_probability", "l1"), ("logit", "share")])
def test_executors_agree_on_variants(score: str, measure: str, maker: str) -> None:
    network, sample = smooth_network(), random_sample(2, real=(2,))
    eager, other = (GuidedStep(copy.deepcopy(network), 0.5, score=score, measure=measure) for _ in range(2))
    other.executor = CompiledExecutor("eager") if maker == "traced" else RecordingExecutor(None, RerunRecording)
    for step in (eager, other):
        step(sample)["loss"].backward()
    for mine, theirs in zip(other.network.parameters(), eager.network.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_what_is_added_to_all_logits_is_seen_by_the_centred_score_alone() -> None:
    """The way out that the plain logit leaves: with f_k + g(x) for all k, the softmax decides as before."""
    network, sample = smooth_network(), random_sample(1)
    background = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1))
    found: dict[str, list[Tensor]] = {"logit": [], "centred": []}
    for score in found:
        for shift in (0.0, 1.0):
            inputs = sample.inputs.clone().requires_grad_()
            logits = network(inputs) + shift * background(inputs)
            found[score].append(guidance_loss(logits, inputs, sample, GuidanceOptions(score=score)))
    torch.testing.assert_close(found["centred"][1], found["centred"][0], rtol=1e-4, atol=0)
    assert abs(found["logit"][1] / found["logit"][0] - 1) > 0.1


def test_the_share_does_not_change_with_the_gradients_scale_and_a_vanishing_one_has_a_derivative() -> None:
    sample = random_sample(1)
    gradients = torch.randn_like(sample.inputs)
    outside = gradients * (1 - sample.provenance_mask)
    share = MEASURES["share"]
    torch.testing.assert_close(share(100 * outside, [100 * gradients], sample), share(outside, [gradients], sample))
    nothing = torch.zeros_like(gradients, requires_grad=True)
    share(nothing * (1 - sample.provenance_mask), [nothing], sample).sum().backward()
    assert torch.equal(nothing.grad, torch.zeros_like(nothing))  # type: ignore[arg-type]
