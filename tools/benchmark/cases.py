"""What the benchmark measures: networks, batches, and the losses of the three kinds of step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from provscale.guidance.loss import classification_loss
from provscale.guidance.step import GuidedStep
from provscale.models import MODELS, StructuredKeypointPooling
from provscale.predictions import run_network
from provscale.sample import Sample
from provscale.second_derivatives.attention import twice_differentiable_attention

SPLIT = "hard, 1 of 4 synthetic"
FLOOR = {"hard": 2.0, "soft": 3.0, "soft, one term": 2.0, SPLIT: 1.25}
"""Least ratio to a plain step, counting passes: docs/performance.md. `SPLIT` is a batch in two parts."""
ALPHA = 0.05
CLASSES = 200
PERSONS, KEYPOINTS = 10, 17
"""Person slots and keypoints of a clip, as in configs/ucf101_hrnet.yaml."""


@dataclass(frozen=True)
class Case:
    """One network on one batch shape; `size` in pixels, of skeletons in frames."""

    backbone: str
    batch: int
    size: int
    channels_last: bool = False

    @property
    def shape(self) -> str:
        unit = "frames" if self.backbone == "skp" else "px"
        return f"{self.batch} x {self.size} {unit}" + (", channels last" if self.channels_last else "")


QUICK = [
    Case("vgg16 convolutions", 4, 48),
    Case("deit_small_patch16_224", 4, 64),
    Case("resnet50", 4, 64),
    Case("skp", 2, 16),
    Case("vgg16_cam", 4, 48),
    Case("deit_small_sat", 4, 64),
]
FULL = [
    Case("vgg16 convolutions", 32, 224),
    Case("deit_small_patch16_224", 32, 224),
    Case("resnet50", 128, 224),
    Case("skp", 30, 32),
    Case("vgg16_cam", 32, 224),
    Case("deit_small_sat", 32, 224),
]
"""Table 8's batches."""


def build(case: Case) -> nn.Module:
    """The case's network with random weights."""
    if case.backbone == "vgg16 convolutions":
        # As for localisation: without the fully connected layers, which hold nine tenths of VGG16's weights.
        features = torchvision.models.vgg16().features
        network: nn.Module = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))
    else:
        options: dict[str, Any] = {"img_size": case.size} if "deit" in case.backbone else {}
        make = MODELS[case.backbone] if case.backbone in MODELS else partial(timm.create_model, case.backbone)
        network = make(num_classes=CLASSES, **options)
    return network.to(memory_format=torch.channels_last) if case.channels_last else network


def make_sample(case: Case, label: str, device: torch.device) -> Sample:
    """Random inputs, classes and a mask whose left half (of persons, every second) is source A.

    Args:
        label: one of `FLOOR`.
    """
    soft = label.startswith("soft")
    generator = torch.Generator().manual_seed(0)
    if case.backbone == "skp":
        inputs = make_skeletons(case, generator)
        mask = torch.zeros_like(inputs)
        mask[:, ::2] = 1
    else:
        inputs = torch.randn(case.batch, 3, case.size, case.size, generator=generator)
        mask = torch.zeros(case.batch, 1, case.size, case.size)
        mask[..., : case.size // 2] = 1
    targets = torch.randint(CLASSES, (case.batch, 2 if soft else 1), generator=generator)
    sample = Sample.real(inputs, targets[:, 0])
    weight = torch.full((case.batch,), 0.5 if soft else 1.0)
    synthetic = torch.arange(case.batch) % 4 == 0 if label == SPLIT else torch.ones(case.batch, dtype=torch.bool)
    return replace(
        sample, targets=targets, provenance_mask=mask, mixing_weight=weight, is_synthetic=synthetic, guided=True
    ).to(device)


def make_skeletons(case: Case, generator: torch.Generator) -> Tensor:
    """Clips [B, P, F, 3V] in which 4 of 10 person slots are taken and one keypoint in ten is missing."""
    shape = (case.batch, PERSONS, case.size, KEYPOINTS)
    places = 2 * torch.rand(*shape, 2, generator=generator) - 1
    there = torch.rand(shape, generator=generator) > 0.1
    there[:, 4:] = False
    points = torch.cat([places, torch.rand(*shape, 1, generator=generator).clamp(min=0.1)], dim=4)
    return (points * there[..., None]).flatten(3)


def without_fixed_shapes(network: nn.Module) -> nn.Module:
    """Undoes what a recording executor has asked of SKP, so that nothing else pays for it."""
    if isinstance(network, StructuredKeypointPooling):
        network.masked = False
    return network


def plain_loss(network: nn.Module, sample: Sample, dtype: torch.dtype | None) -> Tensor:
    """Forward, cross-entropy and the network's own losses: what one would train without guidance."""
    logits, own = run_network(without_fixed_shapes(network), sample.inputs, dtype)
    return sum(own.values(), start=classification_loss(logits, sample))


def hand_loss(network: nn.Module, sample: Sample, dtype: torch.dtype | None) -> Tensor:
    """Eq. 1 as one would write it, with plain autograd and nothing from this package but the cross-entropy."""
    inputs = sample.inputs.detach().requires_grad_()
    with twice_differentiable_attention():
        logits, own = run_network(without_fixed_shapes(network), inputs, dtype)
    masks = [1 - sample.provenance_mask, sample.provenance_mask]
    outside: Tensor | float = 0.0
    for column, mask in zip(sample.targets.unbind(1), masks, strict=False):
        score = (logits.gather(1, column[:, None]).squeeze(1) * sample.is_synthetic).sum()
        (gradient,) = torch.autograd.grad(score, inputs, create_graph=True)
        outside = outside + mask * gradient
    assert isinstance(outside, Tensor)
    penalty = (outside.square().flatten(1).sum(dim=1) * sample.is_synthetic).mean()
    return sum(own.values(), start=classification_loss(logits, sample) + ALPHA * penalty)


def sized(case: Case, label: str) -> Case:
    """At least two synthetic samples of a batch in two parts: a part of one sample is bound by reading the weights."""
    return replace(case, batch=max(case.batch, 8)) if label == SPLIT else case


def possible(case: Case, label: str, executor: str) -> bool:
    """A batch in two parts is for networks without statistics of the batch, and for the eager executor."""
    statistics = case.backbone in ("resnet50", "skp", "deit_small_sat")
    return label != SPLIT or (not statistics and executor == "eager")


LOSSES: dict[str, Callable[[nn.Module, Sample, torch.dtype | None], Tensor]] = {
    "plain eager": plain_loss,
    "by hand": hand_loss,
}


def make_step(network: nn.Module, label: str, precision: str, executor: str) -> GuidedStep:
    """The package's step for a kind of label, one of `FLOOR`."""
    term = "batch" if label == "soft, one term" else "none"
    return GuidedStep(
        network, ALPHA, precision=precision, executor=executor, sampled_term=term, split_batch=label == SPLIT
    )
