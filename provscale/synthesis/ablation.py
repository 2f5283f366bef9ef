"""The paper's mask ablation: provenance that is right in amount and wrong in place."""

from __future__ import annotations

from dataclasses import replace

import torch

from provscale.randomness import numpy_generator
from provscale.sample import Sample
from provscale.synthesis.base import Key


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
