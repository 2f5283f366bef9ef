"""The guidance loss under autocast, and bfloat16 networks."""

from __future__ import annotations

import pytest
import torch
from networks import random_sample, relative, small_vit
from test_guidance import ALPHA, NETWORKS, reference
from torch import nn

from provscale.guidance.loss import guidance_loss, guidance_penalty
from provscale.guidance.options import GuidanceOptions
from provscale.guidance.step import GuidedStep


# ---- the FP32 island ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("targets", [1, 2], ids=["hard", "soft"])
def test_penalty_of_given_gradients_under_autocast(targets: int, reduction: str) -> None:
    """FP32 gradients large enough that bfloat16 sums would be off by per cents; expected: the formula in float64."""
    sample = random_sample(targets, size=64, levels=3)
    gradients = [100 + 10 * torch.randn_like(sample.inputs) for _ in range(targets)]
    mask = sample.provenance_mask.double()
    vector = (1 - mask) * gradients[0].double()
    if targets == 2:
        vector = vector + mask * gradients[1].double()
    expected = (vector**2).sum() / len(sample) / (3 * 64 * 64 if reduction == "mean" else 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = guidance_penalty(gradients, sample, GuidanceOptions(reduction=reduction))
    assert found.dtype == torch.float32
    assert relative(found, expected) < 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_network_float32_guidance(name: str) -> None:
    """The network's layers give bfloat16; the losses are float32 and within 1 % of FP32's (bfloat16 keeps 8 bits,
    0.4 %, and L_PG is a square), the gradient of all parameters together within 10 %: rounding moves values over
    ReLU's kink, which alone, with alpha 0, makes 6 % in the CNN."""
    build, size = NETWORKS[name]
    network, sample = build(), random_sample(2, size)
    *exact, gradients = reference(network, sample, alpha=1.0)
    dtypes: set[torch.dtype] = set()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    losses = (step := GuidedStep(network, alpha=1.0, precision="bf16"))(sample)
    assert dtypes == {torch.bfloat16}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    losses["loss"].backward()
    for loss, expected in zip(losses.values(), exact, strict=True):
        assert abs(loss.item() - expected) / expected < 1e-2
    found = torch.cat([p.grad.flatten() for p in step.network.parameters() if p.grad is not None])
    assert found.dtype == torch.float32
    assert relative(found, torch.cat([gradient.flatten() for gradient in gradients.values()])) < 0.1


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_callers_autocast_changes_nothing(precision: str) -> None:
    """Accelerate may run a step's forward under its own autocast; what the step differentiates inside must not be
    cast by it."""
    sample = random_sample(2, 32)
    results = []
    for enabled in (False, True):
        step = GuidedStep(small_vit(), ALPHA, precision=precision)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = step(sample)
            gradient = step(sample, outputs=frozenset({"input_gradient"}))["input_gradient"]
        losses["loss"].backward()
        results.append([losses["loss"].detach(), gradient, *(p.grad for p in step.network.parameters())])
    for without, within in zip(*results, strict=True):
        assert torch.equal(without, within)


def test_the_loss_alone_is_float32_under_autocast() -> None:
    """`guidance_loss` in one's own loop, called inside the autocast region: gradient, mask and norm are FP32."""
    network, sample = small_vit(), random_sample(2, 32)
    inputs = sample.inputs.requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(inputs)
            assert logits.dtype == torch.bfloat16
            loss = guidance_loss(logits, inputs, sample)
        assert loss.dtype == torch.float32
        outside = guidance_loss(logits, inputs, sample)
    assert torch.equal(loss, outside)
