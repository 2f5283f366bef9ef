"""Alpha that carries over: `guidance.alpha` as a ratio of gradients instead of a factor of the loss.

A factor that suits one network and task is a hundred times too large or small for another, because L_PG is as large as
the input gradient happens to be. What training feels is how long the gradient of alpha * L_PG with respect to the
parameters is beside that of L_cls. So under `guidance.alpha_rule: gradient_ratio`

    L = L_cls + alpha * s * L_PG,    s = geometric mean of ||grad L_cls|| / ||grad L_PG||

over the first `guidance.alpha_steps` guided optimizer steps; from then on s is fixed. Until then it is the mean so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from provscale.guidance.executors.recording import state_preserved
from provscale.guidance.step import TERM_GRADIENTS
from provscale.randomness import seed_everything
from provscale.sample import Sample

if TYPE_CHECKING:
    from provscale.engine import Engine

Lengths = dict[str, float]
"""`gradient_norm_cls` and `gradient_norm_guidance`, the latter not multiplied by alpha."""


def gradient_lengths(engine: Engine, samples: Sequence[Sample], key: Sequence[int | str]) -> Lengths:
    """How long the gradients of L_cls and of L_PG with respect to all parameters are, each the mean over the samples of
    all processes. Leaves no trace in training; all processes must call it, and get the same numbers.

    Args:
        samples: micro-batches of one size, of this process.
        key: with a micro-batch's number, seeds dropout as training seeds it.
    """
    total: dict[str, Tensor] = {}
    with state_preserved(engine.network, engine.device):
        for number, sample in enumerate(samples):
            seed_everything(*key, number * engine.world_size + engine.rank)
            for name, gradient in engine.predict(sample, frozenset({TERM_GRADIENTS})).items():
                total[name] = total.get(name, 0) + gradient / len(samples)
    norms = torch.stack([engine.mean(gradient).norm() for gradient in total.values()]).tolist()
    return {name.replace("gradient", "gradient_norm"): norm for name, norm in zip(total, norms, strict=True)}


def gradient_scale(lengths: Lengths) -> float | None:
    """||grad L_cls|| / ||grad L_PG||; None where that says nothing: a batch without synthetic samples, or NaN."""
    scale = lengths["gradient_norm_cls"] / max(lengths["gradient_norm_guidance"], 1e-30)
    return scale if 0 < scale < 1e20 else None


def weight_of(alpha: float, scales: Sequence[float]) -> float:
    """The weight of L_PG that is `alpha` in units of the measured scales' geometric mean; 0 without any."""
    if not scales:
        return 0.0
    return alpha * math.exp(sum(map(math.log, scales)) / len(scales))
