"""How much of the input gradient lies outside the target object: what guidance is meant to lower.

The share is of squared gradient because that is what the guidance loss sums (L_PG of the paper, hard label), with
the object in place of the provenance mask.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.evaluation.base import EVALUATORS, Evaluator, Gather, alone
from provscale.evaluation.maxboxacc import truncate_boxes
from provscale.sample import Sample


@dataclass
class EnergySums:
    """Sums over samples. Samples whose gradient is zero are only counted: their share is undefined."""

    share_outside: float = 0.0
    area_outside: float = 0.0
    samples: int = 0
    zero_gradients: int = 0


def box_mask(boxes: Tensor, size: tuple[int, int], names: Sequence[str]) -> Tensor:
    """The union of each sample's boxes as a mask.

    A pixel belongs to a box from trunc(x0) to trunc(x1) inclusive, the convention of MaxBoxAccV2.

    Args:
        boxes: [B, 4] or [B, N, 4] x0 y0 x1 y1 in pixels, rows of NaN are padding.
        size: (H, W).
        names: what error messages call the samples.

    Returns:
        [B, 1, H, W] float64, 1 = inside.

    Raises:
        UserError: boxes that `truncate_boxes` refuses.
    """
    mask = torch.zeros(len(boxes), 1, *size, dtype=torch.float64)
    for row, (rows, name) in enumerate(zip(boxes.detach().cpu().numpy(), names, strict=True)):
        for x0, y0, x1, y1 in truncate_boxes(rows, size, name):
            mask[row, 0, y0 : y1 + 1, x0 : x1 + 1] = 1.0
    return mask


def energy_outside(input_gradient: Tensor, object_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Squared gradient outside the object, and in all.

    Args:
        input_gradient: [B, C, H, W], any float dtype; summed in float64, where no float32 square underflows.
        object_mask: [B, 1, H, W], 1 = object, 0 = outside.

    Returns:
        (outside, total), each float64 [B] on the CPU.
    """
    energy = input_gradient.detach().cpu().double().square().sum(dim=1, keepdim=True)
    outside = energy * (1.0 - object_mask.detach().cpu().double())
    return outside.flatten(1).sum(dim=1), energy.flatten(1).sum(dim=1)


@EVALUATORS.register("gradient_energy")
class GradientEnergy(Evaluator):
    """Share in percent of the true class's squared input gradient that lies outside the object, mean over samples.

    Reads `outputs["input_gradient"]` [B, C, H, W] and `sample.annotations["object_mask"]` [B, 1, H, W] in {0, 1}
    (1 = object), or, if there is no such mask, `sample.annotations["box"]`.

    `gradient_energy`: the share. `gradient_energy/area_outside`: the share of pixels outside the object, over the
    same samples: what a gradient spread evenly would give. `gradient_energy/zero_gradients`: how many samples had a
    gradient of exactly zero; they are left out of both means, which are NaN if no sample is left.
    """

    requires = frozenset({"input_gradient"})

    def __init__(self, num_classes: int, group_names: Sequence[str] = ()) -> None:
        """Both arguments are part of every evaluator's signature and not used."""
        self.sums = EnergySums()

    def accumulate(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Adds one batch.

        Raises:
            UserError: neither `object_mask` nor `box`, a mask of another size or with other values than 0 and 1,
                boxes that `truncate_boxes` refuses, or a gradient that is not finite.
        """
        if "input_gradient" not in outputs:
            raise UserError(f"{EVALUATORS.key}: gradient_energy needs a network that gives 'input_gradient'; remove it")
        gradient = outputs["input_gradient"]
        if gradient.ndim != 4 or len(gradient) != len(sample):
            raise UserError(
                f"gradient_energy: the input gradient has shape {tuple(gradient.shape)}; allowed is "
                f"[{len(sample)}, channels, height, width]: this metric is for images"
            )
        names = [f"sample {index}" for index in sample.index.tolist()]
        mask = object_mask_of(sample, (gradient.shape[2], gradient.shape[3]), names)
        outside, total = energy_outside(gradient, mask)
        finite = torch.isfinite(total)
        if not bool(finite.all()):
            name = names[int((~finite).nonzero()[0])]
            raise UserError(f"{name}: the input gradient is not finite; the network diverged, use an earlier one")
        used = total > 0
        self.sums.share_outside += float((outside[used] / total[used]).sum())
        self.sums.area_outside += float((1.0 - mask.flatten(1).mean(dim=1))[used].sum())
        self.sums.samples += int(used.sum())
        self.sums.zero_gradients += int((~used).sum())

    def compute(self, gather: Gather = alone) -> dict[str, float]:
        """The metrics named in the class's docstring.

        Raises:
            UserError: no sample was accumulated on any process.
        """
        share, area, samples, zeros = np.sum([astuple(part) for part in gather(self.sums)], axis=0).tolist()
        if samples + zeros == 0:
            raise UserError("gradient_energy: no sample was evaluated; check that the evaluation split is not empty")
        return {
            "gradient_energy": 100.0 * share / samples if samples else float("nan"),
            "gradient_energy/area_outside": 100.0 * area / samples if samples else float("nan"),
            "gradient_energy/zero_gradients": zeros,
        }


def object_mask_of(sample: Sample, size: tuple[int, int], names: Sequence[str]) -> Tensor:
    """The object's pixels, float64 [B, 1, H, W] on the CPU; see `GradientEnergy` for where they come from."""
    if "object_mask" in sample.annotations:
        mask = sample.annotations["object_mask"].detach().cpu().double()
        if mask.shape != (len(sample), 1, *size):
            raise UserError(
                f"gradient_energy: annotation 'object_mask' has shape {tuple(mask.shape)}; the input gradient needs "
                f"{(len(sample), 1, *size)}"
            )
        other = (mask != 0) & (mask != 1)
        if bool(other.any()):
            name = names[int(other.flatten(1).any(dim=1).nonzero()[0])]
            raise UserError(f"{name}: object_mask holds {float(mask[other][0]):g}; allowed are 0 and 1 (1 = object)")
        return mask
    if "box" in sample.annotations:
        return box_mask(sample.annotations["box"], size, names)
    found = ", ".join(sorted(sample.annotations)) or "none"
    raise UserError(
        f"{EVALUATORS.key}: gradient_energy needs the annotation 'object_mask' or 'box' and the data set gives: "
        f"{found}; choose a data set with objects or remove gradient_energy"
    )
