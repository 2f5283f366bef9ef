"""The paper's mask ablations: provenance that is right in amount and wrong in place, or a little too large or small.

The paper's random mask is not described further, so there are two readings, by `guidance.mask`:

`random`: the sample's own mask moved to a random place (`random_mask`). Boxes stay boxes and persons stay persons, but
a box that wraps around ends in two or four parts, and a large one still covers most of what it did.
`independent`: a new mask that knows nothing of the own one but how many elements have which value (`independent_mask`).
With the area kept, a mask of share s agrees with the true one on s^2 + (1 - s)^2 of the elements on average, which is
2/3 over uniform s: both are mild controls for mixing, where chance alone is right that often.

`complement`, which the paper has not, is wrong everywhere (`complement_mask`): the strictest control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from provscale.randomness import numpy_generator
from provscale.sample import Sample
from provscale.synthesis.base import Key

CELLS = 4
"""Cells a side of the random field that shapes an independent mask: spots of about a quarter of the image."""


def random_mask(sample: Sample, key: Key) -> Sample:
    """Moves each sample's mask to a random place (cyclically along every axis): same area and shape.

    Persons, frames and elements of a skeleton mask all move; so a mask that is whole persons ends on other ones.

    `key` with the sample's index decides the place.
    """
    rows = []
    for mask, index in zip(sample.provenance_mask, sample.index.tolist(), strict=True):
        generator = numpy_generator(*key, "random mask", index)
        axes = tuple(range(mask.dim()))
        rows.append(mask.roll([int(generator.integers(mask.shape[axis])) for axis in axes], axes))
    return replace(sample, provenance_mask=torch.stack(rows))


def independent_mask(sample: Sample, key: Key) -> Sample:
    """Gives each sample a new mask with the same values, each as often: the elements where a smooth random field is
    highest get the highest values, and so on.

    `key` with the sample's index decides the field, which is drawn on 4 x 4 cells for every channel (or person).
    """
    mask = sample.provenance_mask
    fields = np.stack(
        [
            numpy_generator(*key, "independent mask", index).standard_normal((mask.shape[1], CELLS, CELLS))
            for index in sample.index.tolist()
        ]
    )
    drawn = torch.from_numpy(fields).float().to(mask.device, non_blocking=True)
    field = F.interpolate(drawn, mask.shape[2:], mode="bicubic", align_corners=False).flatten(1)
    values = mask.flatten(1).sort(dim=1).values
    new = torch.empty_like(values).scatter(1, field.argsort(dim=1), values)
    return replace(sample, provenance_mask=new.view_as(mask))


def complement_mask(sample: Sample, key: Key) -> Sample:
    """Turns each synthetic sample's mask round, 1 - M: what is the target's is called the other's. `key` is unused."""
    synthetic = sample.is_synthetic.view(-1, *[1] * (sample.provenance_mask.dim() - 1))
    mask = torch.where(synthetic, 1 - sample.provenance_mask, sample.provenance_mask)
    return replace(sample, provenance_mask=mask)


def dilated_mask(sample: Sample, percent: float) -> Sample:
    """Grows each synthetic sample's region M = 1 by `percent` of its area, or shrinks it if that is below 0.

    The elements nearest to the region get 1 (those of it that are nearest to the rest get 0), by Euclidean distance
    within each image [H, W]. A mask that is 1 or below 1 everywhere stays. Waits for the device.
    """
    masks = sample.provenance_mask.cpu().numpy().copy()
    for number in sample.is_synthetic.cpu().nonzero()[:, 0].tolist():
        for mask in masks[number]:
            inside = mask == 1
            changing = ~inside if percent > 0 else inside
            count = min(round(abs(percent) / 100 * inside.sum()), int(changing.sum()))
            if count and changing.sum() < mask.size:
                distance = cv2.distanceTransform(changing.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
                order = np.argsort(np.where(changing, distance, np.inf), axis=None, kind="stable")
                mask.reshape(-1)[order[:count]] = 1 if percent > 0 else 0
    return replace(sample, provenance_mask=torch.from_numpy(masks).to(sample.provenance_mask.device))


REPLACED: dict[str, Callable[[Sample, Key], Sample]] = {
    "random": random_mask,
    "independent": independent_mask,
    "complement": complement_mask,
}
"""What `guidance.mask` makes of a synthetic batch before the step."""


def ablated(sample: Sample, mask: str, dilation: float, key: Key) -> Sample:
    """The batch with the mask that `guidance.mask` and `guidance.dilation` ask for, dilated first."""
    if not sample.guided:
        return sample
    if dilation:
        sample = dilated_mask(sample, dilation)
    return REPLACED[mask](sample, key) if mask in REPLACED else sample
