"""Measures of the input gradient outside a target's own elements. Each is a function and a line here.

A measure maps what lies outside to a number per sample [B]. Its arguments:

    outside    [B, ...]  (1 - M) . grad f_y, or (1 - M) . grad f_A + M . grad f_B
    gradients  one [B, ...] (hard label) or two (soft label), whole; padding is 0 in all of them
    sample     the batch, for measures that need more of it, such as its inputs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from provscale.registry import Registry
from provscale.sample import Sample

Measure = Callable[[Tensor, Sequence[Tensor], Sample], Tensor]

MEASURES: Registry[Measure] = Registry("guidance.measure")

SMALLEST_ENERGY = 1e-16
"""Added to an energy that is divided by; its square is still a normal FP32 number, which the derivative divides by."""


def per_sample(values: Tensor) -> Tensor:
    """Sum over all elements of a sample: [B, ...] -> [B]."""
    return values.flatten(1).sum(dim=1)


@MEASURES.register("energy")
def energy(outside: Tensor, gradients: Sequence[Tensor], sample: Sample) -> Tensor:
    """|| outside ||_2^2, the paper's (Eq. 1)."""
    return per_sample(outside.square())


@MEASURES.register("l1")
def l1(outside: Tensor, gradients: Sequence[Tensor], sample: Sample) -> Tensor:
    """|| outside ||_1, that of GALS (Petryk et al., CVPR 2022)."""
    return per_sample(outside.abs())


@MEASURES.register("share")
def share(outside: Tensor, gradients: Sequence[Tensor], sample: Sample) -> Tensor:
    """|| outside ||^2 / (|| grad f_A ||^2 + || grad f_B ||^2), in [0, 1] for a binary M.

    It does not change when the gradient shrinks everywhere, so only looking elsewhere lowers it.
    """
    whole = sum(per_sample(gradient.square()) for gradient in gradients)
    return per_sample(outside.square()) / (whole + SMALLEST_ENERGY)


@MEASURES.register("attribution_share")
def attribution_share(outside: Tensor, gradients: Sequence[Tensor], sample: Sample) -> Tensor:
    """1 - EPG: the share of positive attributions that lies outside, in [0, 1] for a binary M.

    Attributions are input x gradient, summed over channels; it is the "Energy" loss of Model-Guidance (Rao et al., ICCV
    2023, section 3.3) with M in place of a box. Depends on where the inputs' zero lies, as input x gradient does.
    """

    def positive(gradient: Tensor) -> Tensor:
        return per_sample(torch.relu((sample.inputs.to(gradient.dtype) * gradient).sum(dim=1)))

    whole = sum(positive(gradient) for gradient in gradients)
    return positive(outside) / (whole + SMALLEST_ENERGY)
