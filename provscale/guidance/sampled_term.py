"""Half the guidance of soft labels: one of the two terms, drawn at random, instead of both.

For a binary mask the two terms of L_PG do not overlap, so

    || (1-M) . grad f_A + M . grad f_B ||^2 = || (1-M) . grad f_A ||^2 + || M . grad f_B ||^2

and twice one of them, drawn with probability 1/2, has the sum as its expectation. Each term is a hard-label term,
of class A with mask M or of class B with mask 1-M, and costs one input gradient instead of two.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from provscale.sample import Sample


def draw_first(sample: Sample, per: str) -> Tensor:
    """Bool [B]: True keeps the term of source A. Drawn from the device's global generator.

    Args:
        per: `sample`: drawn for every sample, unbiased where samples do not interact. `batch`: one draw for all
            samples, noisier, unbiased for every network (train-mode BatchNorm makes a sample's gradient depend on the
            others' draws).
    """
    size = len(sample) if per == "sample" else 1
    return (torch.rand(size, device=sample.inputs.device) < 0.5).expand(len(sample))


def one_term(sample: Sample, first: Tensor) -> Sample:
    """The hard-label sample whose L_PG, doubled, stands for the soft-label one's.

    Args:
        sample: soft labels, targets [B, 2]; a binary mask, else the terms overlap and the result is biased.
        first: bool [B], see `draw_first`.
    """
    targets = torch.where(first, sample.targets[:, 0], sample.targets[:, 1])[:, None]
    mask = sample.provenance_mask
    chosen = first.view(-1, *[1] * (mask.dim() - 1))
    return replace(sample, targets=targets, provenance_mask=torch.where(chosen, mask, 1 - mask))
