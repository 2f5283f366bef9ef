"""GuidedStep and its carrier: what an engine and an optimizer see of a guided step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import CLASSES, random_sample, relative, small_cnn, small_vit, smooth_network
from plain_steps import plain_step
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from provscale.guidance.step import GuidedStep

ALPHA = 0.5


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def assert_same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float = 0.0) -> None:
    """Equal to the last bit, or to a relative error of `tolerance` for each parameter."""
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        other = expected[name]
        if gradient is None or other is None:
            assert gradient is other, name
        else:
            assert gradient.dtype == other.dtype
            assert relative(gradient, other) <= tolerance, (name, relative(gradient, other))


# ---- the carrier -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("targets", [1, 2], ids=["hard", "soft"])
@pytest.mark.parametrize("build", [small_cnn, small_vit])
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_gradients_are_plain_autograds(build: Any, targets: int, alpha: float, dtype: torch.dtype | None) -> None:
    """To the last bit, with buffers: BatchNorm's statistics move once a step, as in the plain one. Only the second
    derivatives of train-mode BatchNorm and of convolutions are the step's own, equal up to rounding: 1e-6 in float32.
    In bfloat16 (8 bits, 0.4 %) PyTorch's formula for BatchNorm rounds each of its many intermediate results."""
    plain, network = build(), build()
    sample = random_sample(targets, size=32 if build is small_vit else 16, real=(2,))
    expected = plain_step(plain, sample, alpha, dtype)
    step = GuidedStep(network, alpha, precision="no" if dtype is None else "bf16")
    if alpha == 0:
        with sdpa_kernel(SDPBackend.MATH):  # as the plain step; alone, alpha 0 takes PyTorch's default
            losses = step(sample)
    else:
        losses = step(sample)
    losses["loss"].backward()
    bound = 0.0 if alpha == 0 else 1e-6 if dtype is None else 0.05
    assert relative(losses["loss"].detach(), expected) <= bound
    assert_same(gradients(network), gradients(plain), bound)
    for buffer, expected_buffer in zip(network.buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, expected_buffer)


@pytest.mark.parametrize("targets", [1, 2], ids=["hard", "soft"])
def test_the_carrier_adds_no_rounding(targets: int) -> None:
    """A guided network of operations that the package leaves to PyTorch, so that both runs use its: equal bits."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.Tanh(), nn.Softmax(dim=1), nn.Linear(16, CLASSES))
    plain, sample = copy.deepcopy(network), random_sample(targets, real=(2,))
    expected = plain_step(plain, sample, ALPHA)
    losses = GuidedStep(network, ALPHA)(sample)
    losses["loss"].backward()
    assert torch.equal(losses["loss"].detach(), expected)
    assert_same(gradients(network), gradients(plain))


def test_batch_norm_counts_one_batch_a_step() -> None:
    network = small_cnn()
    step = GuidedStep(network, ALPHA)
    for _ in range(3):
        step(random_sample(2))["loss"].backward()
    assert network[1].num_batches_tracked.item() == 3
    # Running mean after one step from 0: momentum times the batch mean of the first convolution's output.
    network, sample = small_cnn(), random_sample(2)
    mean = network[0](sample.inputs).mean(dim=(0, 2, 3))
    GuidedStep(network, ALPHA)(sample)
    torch.testing.assert_close(network[1].running_mean, 0.1 * mean, rtol=1e-5, atol=1e-7)


def test_the_losses_are_consistent() -> None:
    losses = GuidedStep(small_cnn(), ALPHA)(random_sample(2))
    torch.testing.assert_close(losses["loss"], losses["loss_cls"] + ALPHA * losses["loss_guidance"])
    assert losses["loss"].requires_grad
    assert not losses["loss_cls"].requires_grad
    assert not losses["loss_guidance"].requires_grad


def test_a_scaled_loss_scales_the_gradients() -> None:
    """What Accelerate does with accumulation: loss / k. Halving is exact in floating point."""
    whole, half = GuidedStep(small_cnn(), ALPHA), GuidedStep(small_cnn(), ALPHA)
    sample = random_sample(2)
    whole(sample)["loss"].backward()
    (half(sample)["loss"] / 2).backward()
    for found, expected in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(found.grad * 2, expected.grad)


def test_backward_adds_to_gradients_already_there() -> None:
    step, once = GuidedStep(smooth_network(), ALPHA), GuidedStep(smooth_network(), ALPHA)
    sample = random_sample(2)
    once(sample)["loss"].backward()
    for _ in range(2):
        step(sample)["loss"].backward()
    for found, expected in zip(step.parameters(), once.parameters(), strict=True):
        assert torch.equal(found.grad, 2 * expected.grad)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulation_equals_one_large_batch(parts: int) -> None:
    """Every mean is over samples, so k equal micro-batches average to the batch; float64 rounding only, and 1e-6 in
    float32."""
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        sample = random_sample(2, batch=6, real=(4,)).map(lambda t, d=dtype: t.to(d) if t.is_floating_point() else t)
        weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])
        whole = GuidedStep(smooth_network().to(dtype), ALPHA, class_weights=weights)
        parted = copy.deepcopy(whole)
        whole(sample)["loss"].backward()
        for rows in torch.arange(6).chunk(parts):
            (parted(sample[rows])["loss"] / parts).backward()
        for found, expected in zip(parted.parameters(), whole.parameters(), strict=True):
            assert relative(found.grad, expected.grad) < bound


def test_the_loss_can_be_differentiated_once() -> None:
    loss = GuidedStep(small_cnn(), ALPHA)(random_sample(2))["loss"]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice; call the step again"):
        loss.backward()


def test_gradients_are_freed_after_backward() -> None:
    """They live no longer than the parameters' own: the carrier keeps none."""
    loss = GuidedStep(small_cnn(), ALPHA)(random_sample(2))["loss"]
    assert loss.grad_fn.gradients is not None
    loss.backward()
    assert loss.grad_fn.gradients is None


def test_the_anchor_gets_a_zero_gradient() -> None:
    """ZeRO-3 and FSDP2 wait for it; it must change nothing."""
    step, without = GuidedStep(small_cnn(), ALPHA), GuidedStep(small_cnn(), ALPHA)
    anchor, sample = torch.zeros((), requires_grad=True), random_sample(2)
    step(sample, anchor)["loss"].backward()
    without(sample)["loss"].backward()
    assert anchor.grad.item() == 0.0
    assert_same(gradients(step.network), gradients(without.network))


def test_no_hook_of_a_parameter_fires_inside_the_step() -> None:
    """Engines reduce gradients from such hooks: exactly once, in the carrier's backward."""
    step, fired = GuidedStep(small_cnn(), ALPHA), []
    for name, parameter in step.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    loss = step(random_sample(2))["loss"]
    assert fired == []
    loss.backward()
    assert sorted(fired) == sorted(name for name, _ in step.named_parameters())


def test_a_step_without_gradients_to_come() -> None:
    """Under no_grad the losses are the same numbers, and nothing is kept for a backward pass."""
    sample = random_sample(2)
    losses = GuidedStep(small_cnn(), ALPHA)(sample)
    with torch.no_grad():
        silent = GuidedStep(small_cnn(), ALPHA)(sample)
    assert not silent["loss"].requires_grad
    for name, loss in losses.items():
        assert torch.equal(loss.detach(), silent[name])


def test_the_sample_is_left_alone() -> None:
    sample = random_sample(2)
    before = sample.inputs.clone()
    GuidedStep(small_cnn(), ALPHA)(sample)["loss"].backward()
    assert torch.equal(sample.inputs, before)
    assert not sample.inputs.requires_grad
    assert sample.inputs.grad is None


# ---- parameters that take part, or not ----------------------------------------------------------------------------
class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.network = small_cnn()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


def test_unused_parameters_get_no_gradient() -> None:
    network = WithUnused()
    GuidedStep(network, ALPHA)(random_sample(2))["loss"].backward()
    assert network.unused.weight.grad is None
    assert all(parameter.grad is not None for parameter in network.network.parameters())


@pytest.mark.parametrize(
    ("build", "frozen"),
    [*((smooth_network, name) for name in ("0.weight", "0.bias", "2.weight", "2.bias", "5.weight", "5.bias")),
     *((small_cnn, name) for name in ("0.weight", "1.weight", "1.bias", "8.weight"))],
)  # fmt: skip
def test_frozen_parameters(build: Any, frozen: str) -> None:
    """The others' gradients are plain autograd's of the same network."""
    plain, network = build(), build()
    for each in (plain, network):
        each.get_parameter(frozen).requires_grad_(False)
    sample = random_sample(2)
    plain_step(plain, sample, ALPHA)
    GuidedStep(network, ALPHA)(sample)["loss"].backward()
    assert network.get_parameter(frozen).grad is None
    assert_same(gradients(network), gradients(plain), 1e-6)


def test_only_the_last_bias_trains() -> None:
    """No input gradient depends on it: L_PG has no derivative, L_cls has."""
    network = small_cnn()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name == "8.bias")
    sample = random_sample(1)
    probabilities = network(sample.inputs).softmax(dim=1).detach()
    network = copy.deepcopy(network)
    GuidedStep(network, ALPHA)(sample)["loss"].backward()
    expected = (probabilities - F.one_hot(sample.targets[:, 0], CLASSES)).mean(dim=0)  # softmax minus one-hot
    torch.testing.assert_close(network[8].bias.grad, expected)
