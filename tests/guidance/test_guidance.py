"""Eq. 1 against a float64 reference written here from the formula, sample by sample, with sums of single logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import CLASSES, random_sample, relative, small_cnn, small_vit, smooth_network
from torch import Tensor, nn

from provscale.errors import UserError
from provscale.guidance.loss import guidance_loss, guidance_penalty
from provscale.guidance.options import GuidanceOptions
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample

ALPHA = 10.0  # so large that L_PG is a good part of the gradients compared, see below


def single_logit_gradients(network: nn.Module, inputs: Tensor, logits: Tensor, sample: Sample) -> list[list[Tensor]]:
    """grad f_k of every sample for every target, [targets][samples]: a sum over the synthetic samples' logits,
    taken one by one, because with BatchNorm each of them depends on every sample's input."""
    gradients = []
    for column in range(sample.targets.shape[1]):
        total = torch.zeros_like(inputs)
        for row in range(len(sample)):
            if sample.is_synthetic[row]:
                logit = logits[row, int(sample.targets[row, column])]
                total = total + torch.autograd.grad(logit, inputs, create_graph=True)[0]
        gradients.append(list(total))
    return gradients


def jacobian_gradients(network: nn.Module, inputs: Tensor, logits: Tensor, sample: Sample) -> list[list[Tensor]]:
    """The same for a network whose samples do not interact: each sample alone through its whole Jacobian."""
    jacobians = [
        torch.autograd.functional.jacobian(lambda x: network(x[None])[0], row, create_graph=True) for row in inputs
    ]
    return [[jacobian[int(k)] for jacobian, k in zip(jacobians, column, strict=True)] for column in sample.targets.T]


def reference(
    network: nn.Module,
    sample: Sample,
    alpha: float = ALPHA,
    mean: bool = False,
    masked: bool = True,
    class_weights: list[float] | None = None,
    gradients_of: Callable[..., list[list[Tensor]]] = single_logit_gradients,
) -> tuple[float, float, float, dict[str, Tensor]]:
    """L_total, L_cls, L_PG and d L_total / d parameters in float64, from the formulas in the paper's section on the
    loss, with loops over samples and channels."""
    network = copy.deepcopy(network).double()
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # timm's written-out attention: softmax(q k^T) v
    inputs = sample.inputs.double().requires_grad_()
    logits = network(inputs)
    size = len(sample)
    loss_cls = torch.zeros((), dtype=torch.float64)
    for row in range(size):
        share = float(sample.mixing_weight[row])
        shares = [1.0] if sample.targets.shape[1] == 1 else [share, 1 - share]
        for k, part in zip(sample.targets[row].tolist(), shares, strict=True):
            factor = 1.0 if class_weights is None else class_weights[k]
            loss_cls = loss_cls + part * factor * (logits[row].exp().sum().log() - logits[row, k]) / size
    loss_guidance = torch.zeros((), dtype=torch.float64)
    gradients = gradients_of(network, inputs, logits, sample)
    for row in range(size):
        if not sample.is_synthetic[row]:
            continue
        energy, elements = torch.zeros((), dtype=torch.float64), 0.0
        for channel in range(inputs.shape[1]):
            mask = sample.provenance_mask[row, channel if sample.provenance_mask.shape[1] > 1 else 0].double()
            outside, inside = (1 - mask, mask) if masked else (torch.ones_like(mask), torch.ones_like(mask))
            vector = outside * gradients[0][row][channel]
            if len(gradients) == 2:
                vector = vector + inside * gradients[1][row][channel]
            valid = torch.ones_like(mask) if sample.valid_mask is None else sample.valid_mask[row, channel].double()
            energy = energy + (vector**2)[valid > 0].sum()
            elements += float(valid.sum())
        loss_guidance = loss_guidance + (energy / elements if mean else energy) / size
    loss = loss_cls + alpha * loss_guidance
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return loss.item(), loss_cls.item(), loss_guidance.item(), found


def compare(network: nn.Module, sample: Sample, step: GuidedStep, **settings: Any) -> tuple[float, float]:
    """Largest relative error of the three losses, and of any parameter's gradient, of a step against the reference."""
    *expected, gradients = reference(network, sample, **settings)
    losses = step(sample)
    losses["loss"].backward()
    found = [losses["loss"].item(), losses["loss_cls"].item(), losses["loss_guidance"].item()]
    parameters = dict(step.network.named_parameters())
    assert gradients.keys() == {name for name, parameter in parameters.items() if parameter.grad is not None}
    return (
        max(abs(f - e) / abs(e) for f, e in zip(found, expected, strict=True)),
        max(relative(parameters[name].grad, gradient) for name, gradient in gradients.items()),  # type: ignore[arg-type]
    )


NETWORKS = {"cnn with train-mode BatchNorm": (small_cnn, 16), "vit": (small_vit, 32)}
SAMPLES: dict[str, dict[str, Any]] = {
    "hard": {"targets": 1},
    "hard, some real": {"targets": 1, "real": (0, 2)},
    "soft": {"targets": 2},
    "soft, some real": {"targets": 2, "real": (1,)},
    "soft, mask of 0, 1/2 and 1": {"targets": 2, "levels": 3},
    "hard, mask of 0, 1/2 and 1": {"targets": 1, "levels": 3},
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_step_equals_the_formula(name: str, kind: str, dtype: torch.dtype) -> None:
    """float32: 1e-6 on the losses, 1e-5 on every gradient. float64: rounding only."""
    build, size = NETWORKS[name]
    network, sample = build(), random_sample(size=size, **SAMPLES[kind])
    step = GuidedStep(copy.deepcopy(network).to(dtype), ALPHA)
    loss_error, gradient_error = compare(network, replace(sample, inputs=sample.inputs.to(dtype)), step)
    print(f"\n{name}, {kind}, {dtype}: losses {loss_error:.1e}, gradients {gradient_error:.1e}")
    bounds = (1e-6, 1e-5) if dtype == torch.float32 else (1e-12, 1e-11)
    assert loss_error < bounds[0]
    assert gradient_error < bounds[1]


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("targets", [1, 2], ids=["hard", "soft"])
def test_reduction_and_mask_ablation(mean: bool, masked: bool, targets: int) -> None:
    network, sample = small_cnn(), random_sample(targets, real=(3,))
    step = GuidedStep(
        copy.deepcopy(network), ALPHA, reduction="mean" if mean else "sum", mask="provenance" if masked else "none"
    )
    loss_error, gradient_error = compare(network, sample, step, mean=mean, masked=masked)
    assert loss_error < 1e-6
    assert gradient_error < 1e-5


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
def test_padding_does_not_count(mean: bool) -> None:
    """valid_mask 0: neither in the sum nor in the number of elements of the mean."""
    network, sample = small_cnn(), random_sample(2)
    sample.valid_mask = torch.randint(2, sample.inputs.shape, generator=torch.Generator().manual_seed(1)).float()
    step = GuidedStep(copy.deepcopy(network), ALPHA, reduction="mean" if mean else "sum")
    loss_error, gradient_error = compare(network, sample, step, mean=mean)
    assert loss_error < 1e-6
    assert gradient_error < 1e-5


def test_a_sample_of_nothing_but_padding_costs_nothing() -> None:
    sample = random_sample(1, batch=2)
    sample.valid_mask = torch.zeros_like(sample.inputs)
    for reduction in ("sum", "mean"):
        options = GuidanceOptions(reduction=reduction)
        assert guidance_penalty([torch.ones_like(sample.inputs)], sample, options).item() == 0.0


def test_a_mask_per_channel() -> None:
    """Skeletons have a mask value for every element, so dimension 1 of the mask may be that of the inputs."""
    network, sample = small_cnn(), random_sample(2)
    sample.provenance_mask = torch.randint(2, sample.inputs.shape, generator=torch.Generator().manual_seed(2)).float()
    loss_error, gradient_error = compare(network, sample, GuidedStep(copy.deepcopy(network), ALPHA))
    assert loss_error < 1e-6
    assert gradient_error < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_weights(dtype: torch.dtype) -> None:
    weights = [0.5, 2.0, 1.25, 3.0, 0.25]
    network, sample = small_cnn(), random_sample(2)
    sample.inputs = sample.inputs.to(dtype)
    step = GuidedStep(copy.deepcopy(network).to(dtype), ALPHA, class_weights=torch.tensor(weights))
    loss_error, gradient_error = compare(network, sample, step, class_weights=weights)
    assert loss_error < 1e-6
    assert gradient_error < 1e-5


@pytest.mark.parametrize("targets", [1, 2], ids=["hard", "soft"])
@pytest.mark.parametrize("name", ["vit", "smooth"])
def test_a_batch_equals_its_samples_alone(name: str, targets: int) -> None:
    """Without batch statistics one backward pass for the batch gives each sample's own gradient, here taken from the
    Jacobian of that sample alone (torch.autograd.functional.jacobian)."""
    network, size = (small_vit(), 32) if name == "vit" else (smooth_network(), 16)
    sample = random_sample(targets, size, batch=3)
    step = GuidedStep(copy.deepcopy(network), ALPHA)
    loss_error, gradient_error = compare(network, sample, step, gradients_of=jacobian_gradients)
    assert loss_error < 1e-6
    assert gradient_error < 1e-5


def test_guidance_is_a_visible_part_of_the_compared_gradients() -> None:
    """Otherwise the comparisons above would say little about L_PG."""
    for network, size in ((small_cnn(), 16), (small_vit(), 32)):
        sample = random_sample(2, size)
        plain, guided = (reference(network, sample, alpha)[3] for alpha in (0.0, ALPHA))
        first = next(iter(guided))
        assert relative(guided[first], plain[first]) > 0.2


def test_logits_are_guided_not_probabilities() -> None:
    """A constant added to all logits changes no logit's gradient; a factor 2 makes L_PG 4 times as large. Neither
    holds for gradients of (log-)probabilities. The mask 0 everywhere leaves the plain norm."""
    inputs = torch.randn(2, 3, requires_grad=True)
    matrix = torch.randn(3, 4)
    sample = Sample.real(inputs.detach(), torch.tensor([1, 3]))
    sample.provenance_mask, sample.is_synthetic, sample.guided = torch.zeros(2, 1), torch.tensor([True, True]), True
    expected = (matrix[:, 1].square().sum() + matrix[:, 3].square().sum()) / 2
    for factor in (1.0, 2.0):
        logits = factor * inputs @ matrix + inputs.sum().detach()
        torch.testing.assert_close(guidance_loss(logits, inputs, sample), factor**2 * expected)


@pytest.mark.parametrize("targets", [1, 2], ids=["hard", "soft"])
def test_real_samples_contribute_nothing(targets: int) -> None:
    """Real ones change L_PG only as members of the mean: 2 synthetic of 4 samples cost half of the 2 alone."""
    network, sample = smooth_network(), random_sample(targets, real=(0, 2))

    def penalty(part: Sample) -> Tensor:
        inputs = part.inputs.clone().requires_grad_()
        return guidance_loss(network(inputs), inputs, part)

    alone = sample[torch.tensor([1, 3])]
    torch.testing.assert_close(penalty(sample), penalty(alone) / 2)
    only_real = sample[torch.tensor([0, 2])]
    assert penalty(only_real).item() == 0.0


def test_derivatives_of_the_loss_by_finite_differences() -> None:
    """torch.autograd.gradcheck and gradgradcheck: L_total as a function of the parameters, float64, smooth network."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES)).double()
    names, parameters = zip(*network.named_parameters(), strict=True)
    for targets in (1, 2):
        sample = random_sample(targets, size=5, batch=2)

        def loss(*values: Tensor, sample: Sample = sample) -> Tensor:
            inputs = sample.inputs.double().requires_grad_()
            logits = torch.func.functional_call(network, dict(zip(names, values, strict=True)), inputs)
            return nn.functional.cross_entropy(logits, sample.targets[:, 0]) + guidance_loss(logits, inputs, sample)

        assert torch.autograd.gradcheck(loss, parameters)
        assert torch.autograd.gradgradcheck(loss, parameters)


# ---- mistakes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "average"}, "guidance.reduction: is 'average', must be one of: sum, mean"),
        (
            {"mask": "nome"},
            "guidance.mask: is 'nome', must be one of: provenance, random, independent, complement, none",
        ),
        ({"precision": "fp16"}, "train.precision: is 'fp16', must be one of: no, bf16"),
        ({"alpha": -0.1}, "guidance.alpha: is -0.1, must be 0 or more"),
        ({"alpha": float("nan")}, "guidance.alpha: is nan"),
        ({"executor": "eagre"}, "did you mean 'eager'"),
        ({"score": "logits"}, "did you mean 'logit'"),
        ({"measure": "l2"}, "guidance.measure: unknown name 'l2'"),
        ({"measure": "share", "reduction": "mean"}, "guidance.measure: is share"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GuidedStep(nn.Linear(1, 1), **{"alpha": 0.1, **settings})


def test_logits_that_ignore_the_inputs_are_refused() -> None:
    sample = random_sample()
    constant = torch.zeros(4, CLASSES, requires_grad=True)
    for logits in (constant * 2, constant.detach()):
        with pytest.raises(UserError, match="logits do not depend on the inputs") as caught:
            guidance_loss(logits, sample.inputs.clone().requires_grad_(), sample)
        assert "\n" not in str(caught.value)
