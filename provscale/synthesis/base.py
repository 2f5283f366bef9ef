"""What a synthesis is: it makes x~ and its provenance mask M together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from provscale.randomness import numpy_generator
from provscale.registry import Registry
from provscale.sample import Item, Sample

Key = tuple[int | str, ...]


class Synthesis:
    """Base class, and the synthesis `none`: samples pass through unchanged.

    Attributes:
        pairs: True if each sample is mixed with a partner.
        uses_edits: True if the data set's edited samples join the training set.
        uses_annotations: True if training items come with their annotations; edits may be missing then.
        needs_saliency: True if samples must come with `annotations["saliency"]` [B, 1, H, W], the network's output of
            that name.
    """

    pairs = False
    uses_edits = False
    uses_annotations = False
    needs_saliency = False

    def prepare(self, item: Item) -> Item:
        """Runs in the loader's worker on each item, before transforms (which move image and mask together)."""
        return item

    def __call__(self, sample: Sample, partners: Sample | None = None, key: Key = (0,)) -> Sample:
        """Runs on the device, on a batch. It must not wait for the device, so nothing may be read from a tensor there
        but `sample.index`, which is on the CPU; what is drawn goes there with `non_blocking=True`.

        Args:
            sample: a batch of B samples.
            partners: B samples to mix with, row by row; None = neighbours within the batch (rows 2i and 2i+1).
            key: with a sample's `index`, decides everything random.
        """
        return sample

    def remark(self) -> str:
        """What a user should know of the samples made so far in this process; "" = nothing. Printed with epochs."""
        return ""


class Mixing(Synthesis):
    """Base class of syntheses that mix each sample A with a partner B into one soft-label sample."""

    pairs = True

    def __call__(self, sample: Sample, partners: Sample | None = None, key: Key = (0,)) -> Sample:
        if partners is None:
            partners = sample[torch.tensor(neighbours(len(sample)))]
        generators = [numpy_generator(*key, "mix", int(index)) for index in sample.index.tolist()]
        return self.mix(sample, partners, generators)

    def mix(self, sample: Sample, partners: Sample, generators: list[np.random.Generator]) -> Sample:
        """Mixes row by row; row i draws from `generators[i]` only."""
        raise NotImplementedError  # pragma: no cover - abstract


def neighbours(size: int) -> list[int]:
    """Partner of each position of a batch: 2i and 2i+1 are each other's; the last of an odd batch takes the one before.

    The order of a batch is random already, so neighbours are random pairs. That they are near each other lets a
    batch be divided over any number of processes without a sample's partner changing.
    """
    return [p ^ 1 if p ^ 1 < size else max(p - 1, 0) for p in range(size)]


def mixed(
    sample: Sample, partners: Sample, inputs: Tensor, mask: Tensor, weight: Tensor, valid: Tensor | None = None
) -> Sample:
    """The soft-label sample of A = `sample` and B = `partners`, given x~, M, lambda and what of x~ is no padding."""
    return replace(
        sample,
        inputs=inputs,
        targets=torch.cat([sample.targets[:, :1], partners.targets[:, :1]], dim=1),
        mixing_weight=weight,
        provenance_mask=mask,
        is_synthetic=torch.ones_like(sample.is_synthetic),
        guided=True,
        valid_mask=valid,
        present=None,
    )


SYNTHESES: Registry[Callable[..., Synthesis]] = Registry("synthesis.name")
"""Builders by name, called with their options only (provscale/options.py)."""
SYNTHESES.register("none")(Synthesis)
