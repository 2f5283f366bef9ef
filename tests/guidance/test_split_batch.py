"""Batches whose real samples run an ordinary step: every loss and gradient as of the undivided step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import CLASSES, random_sample, relative, small_cnn, small_vit, smooth_network
from plain_steps import OnceDifferentiable
from test_self_check import check as run_self_check
from timm.layers import BatchNormAct2d
from torch import nn

from provscale.command_line import parse
from provscale.errors import UserError
from provscale.guidance.split_batch import parts_of, refuse_batch_statistics
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample
from provscale.second_derivatives.recompute import recompute_activations
from provscale.trainer import Trainer


def group_norm_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(),
        nn.Conv2d(8, 12, 3, stride=2), nn.GroupNorm(3, 12), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(48, CLASSES),
    )  # fmt: skip


def frozen_batch_norm_cnn() -> nn.Module:
    model = small_cnn()
    for layer in model:
        layer.train(not isinstance(layer, nn.BatchNorm2d))
    return model


def whole_and_split(
    build: Callable[[], nn.Module], sample: Sample, recompute: bool = False, **options: Any
) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Losses, and gradients by parameter, of the same step with and without the option."""
    found = []
    for split in (False, True):
        model = build()
        if recompute:
            recompute_activations(model)
        torch.manual_seed(1)
        losses = GuidedStep(model, 0.5, split_batch=split, **options)(sample)
        losses["loss"].backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append(({name: value.detach() for name, value in losses.items()}, gradients))
    return found


def assert_equal_steps(steps: list[Any], tolerance: float = 1e-5) -> None:
    (losses, gradients), (split_losses, split_gradients) = steps
    for name, value in losses.items():
        torch.testing.assert_close(split_losses[name], value, rtol=tolerance, atol=0)
    assert split_gradients.keys() == gradients.keys()
    assert gradients
    for name, value in gradients.items():
        assert relative(split_gradients[name], value) < tolerance, name


MIXED = (1, 4, 5)
"""Rows of real samples in a batch of 6."""


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("build", [small_vit, group_norm_cnn, frozen_batch_norm_cnn])
def test_a_split_batch_gives_the_same_numbers(build, targets):
    steps = whole_and_split(build, random_sample(targets, 32, batch=6, real=MIXED))
    assert steps[0][0]["loss_guidance"] > 0
    assert_equal_steps(steps)


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "mean"},
        {"mask": "none"},
        {"class_weights": torch.tensor([0.5, 2.0, 1.0, 1.5, 0.1])},
        {"sampled_term": "batch"},  # one draw, whatever the number of samples
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_split_batch_gives_the_same_numbers_with(options):
    sample = random_sample(2, 32, batch=6, real=MIXED)
    sample.valid_mask = torch.ones(6, 3, 32, 32)
    sample.valid_mask[:, :, 20:] = 0
    assert_equal_steps(whole_and_split(group_norm_cnn, sample, **options))


def test_a_split_batch_recomputes_activations():
    assert_equal_steps(whole_and_split(small_vit, random_sample(1, 32, batch=6, real=MIXED), recompute=True))


def test_a_split_batch_in_bf16():
    """2^-8 is the spacing of bf16; kernels of another batch size round differently."""
    steps = whole_and_split(small_vit, random_sample(1, 32, batch=6, real=MIXED), precision="bf16")
    assert_equal_steps(steps, tolerance=2**-5)


@pytest.mark.parametrize("real", [(), range(6)], ids=["all synthetic", "all real"])
@pytest.mark.parametrize("targets", [1, 2])
def test_a_batch_of_one_kind_is_not_split(targets, real):
    sample = random_sample(targets, 32, batch=6, real=real)
    (part,) = parts_of(sample)
    assert part == (sample, 1.0)
    (losses, gradients), (split_losses, split_gradients) = whole_and_split(group_norm_cnn, sample)
    assert split_losses == losses
    assert all(torch.equal(split_gradients[name], value) for name, value in gradients.items())


def test_only_synthetic_samples_are_differentiated_twice():
    """A forward pass that requires the inputs' gradient sees these samples alone."""
    seen = {}
    model = group_norm_cnn()
    model.register_forward_pre_hook(lambda module, inputs: seen.update({inputs[0].requires_grad: inputs[0]}))
    sample = random_sample(1, 16, batch=6, real=MIXED)
    GuidedStep(model, 0.5, split_batch=True)(sample)
    assert torch.equal(seen[True], sample.inputs[[0, 2, 3]])
    assert torch.equal(seen[False], sample.inputs[[1, 4, 5]])


def test_sampled_terms_of_a_split_batch_have_the_same_expectation():
    """The mean over all 2^3 draws for the three synthetic samples is the full loss."""
    sample = random_sample(2, 16, batch=6, real=MIXED)
    expected = GuidedStep(smooth_network(), 0.5)(sample)["loss_guidance"]
    step = GuidedStep(smooth_network(), 0.5, sampled_term="sample", split_batch=True)
    draws = {}
    for seed in range(200):
        torch.manual_seed(seed)
        draw = tuple((torch.rand(3) < 0.5).tolist())
        torch.manual_seed(seed)
        if draw not in draws:
            draws[draw] = step(sample)["loss_guidance"]
    assert len(draws) == 8
    torch.testing.assert_close(sum(draws.values()) / 8, expected, rtol=1e-5, atol=0)


def test_a_split_batch_still_looks_for_first_order_operations():
    with pytest.raises(UserError, match="cannot be differentiated twice"):
        GuidedStep(OnceDifferentiable(), 0.5, split_batch=True)(random_sample(1, batch=6, real=MIXED))


def test_a_parameter_of_one_part_alone_keeps_its_gradient():
    class Gated(nn.Module):
        """Its gate is used in the part whose inputs require a gradient; the rest in both but `unused`."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.gate, self.unused = smooth_network(), nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            logits = self.inner(inputs)
            return logits * self.gate.weight if inputs.requires_grad else logits

    step = GuidedStep(Gated(), 0.5, split_batch=True)
    step(random_sample(1, batch=6, real=MIXED))["loss"].backward()
    assert step.network.gate.weight.grad.abs() > 0
    assert step.network.unused.weight.grad is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(3),
        nn.SyncBatchNorm(3),
        BatchNormAct2d(3),
        nn.BatchNorm2d(3, track_running_stats=False).eval(),
        nn.InstanceNorm2d(3, track_running_stats=True),
    ],
    ids=["BatchNorm", "SyncBatchNorm", "timm's", "eval without statistics", "InstanceNorm with statistics"],
)
def test_networks_that_take_batch_statistics_are_refused(layer):
    training = layer.training
    model = nn.Sequential(nn.Conv2d(3, 3, 1), layer, nn.Flatten(), nn.Linear(768, CLASSES))
    layer.train(training)
    with pytest.raises(UserError, match=f"guidance.split_batch: .* layer '1' is a {type(layer).__name__}") as caught:
        GuidedStep(model, 0.5, split_batch=True)(random_sample(1, batch=6, real=MIXED))
    assert "\n" not in str(caught.value)


def test_layers_that_take_no_batch_statistics_are_not_refused():
    refuse_batch_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.SyncBatchNorm(3), nn.Dropout()).eval())
    refuse_batch_statistics(nn.Sequential(nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm2d(3)))
    refuse_batch_statistics(timm.create_model("test_efficientnet_gn"))


class FunctionalBatchNorm(nn.Module):
    """Batch statistics without a layer that could be named."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(inputs, None, None, training=True)


def test_the_self_check_finds_other_samples_that_interact():
    sample = random_sample(1, batch=6, real=MIXED)
    interacting = nn.Sequential(nn.Conv2d(3, 4, 3), FunctionalBatchNorm(), nn.SiLU(), nn.Flatten(), nn.Linear(784, 5))
    run_self_check(interacting, sample=sample)
    with pytest.raises(UserError, match=r"self-check: .* set guidance.split_batch to false") as caught:
        run_self_check(interacting, sample=sample, split_batch=True)
    assert "\n" not in str(caught.value)
    run_self_check(small_vit(), sample=random_sample(1, 32, batch=6, real=MIXED), split_batch=True)


def test_the_self_check_takes_dropout_as_a_whole_batch():
    """In two parts dropout draws other numbers; the option itself stays on."""
    random = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.Dropout(0.5), nn.SiLU(), nn.Linear(32, CLASSES))
    assert run_self_check(random, sample=random_sample(1, batch=6, real=MIXED), split_batch=True).options.split_batch


def test_the_step_refuses_executors_that_record():
    with pytest.raises(UserError, match=r"guidance.split_batch: is true while guidance.executor is compiled") as caught:
        GuidedStep(group_norm_cnn(), 0.1, split_batch=True, executor="compiled")
    assert "\n" not in str(caught.value)


TRAINED = [
    "--data.name", "digits", "--data.image_size", "32", "--data.batch_size", "12", "--synthesis.name", "edited",
    "--data.options", "{train: 36, edits: 12, test: 4}", "--guidance.alpha", "0.1", "--train.max_steps", "3",
    "--tracking.wandb", "disabled", "--tracking.images", "0", "--guidance.split_batch", "true",
]  # fmt: skip


def test_the_trainer_splits_batches(tmp_path: Path):
    config = [*TRAINED, "--run.dir", str(tmp_path), "--model.name", "test_efficientnet_gn"]
    trainer = Trainer(parse(config))
    assert trainer.step.options.split_batch
    trainer.fit()
    with pytest.raises(UserError, match="layer 'bn1' is a BatchNormAct2d"):
        Trainer(parse([*TRAINED, "--run.dir", str(tmp_path), "--model.name", "test_efficientnet"]))
