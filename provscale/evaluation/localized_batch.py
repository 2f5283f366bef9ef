"""What evaluators of boxes read of a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from provscale.errors import UserError
from provscale.evaluation.base import EVALUATORS
from provscale.sample import Sample


def localized_batch(
    name: str, sample: Sample, outputs: dict[str, Tensor]
) -> tuple[NDArray[np.float64], NDArray[np.floating], list[int | None]]:
    """What an evaluator of boxes reads of one batch: score maps [B, h, w], boxes [B, 4] or [B, N, 4] and ranks.

    The rank of an image is the number of classes with a larger logit than its own; None without logits.

    Raises:
        UserError: no `score_map` output, no `box` annotation, or not one of each for every sample; names the evaluator.
    """
    if "score_map" not in outputs:
        raise UserError(f"{EVALUATORS.key}: {name} needs a network that gives 'score_map'; choose one or remove it")
    if "box" not in sample.annotations:
        found = ", ".join(sorted(sample.annotations)) or "none"
        raise UserError(
            f"{EVALUATORS.key}: {name} needs the annotation 'box' and the data set gives: {found}; "
            f"choose a data set with boxes or remove {name}"
        )
    maps = outputs["score_map"].detach().cpu().double().numpy()
    boxes = sample.annotations["box"].detach().cpu().numpy()
    if not len(maps) == len(boxes) == len(sample):
        raise UserError(
            f"{name}: {len(maps)} score maps and {len(boxes)} box annotations for a batch of {len(sample)}; "
            "the network must give score_map [B, h, w] and the data set box [B, 4] or [B, N, 4]"
        )
    if "logits" not in outputs:
        return maps, boxes, [None] * len(sample)
    logits = outputs["logits"].detach().cpu()
    own = logits.gather(1, sample.targets[:, :1].cpu())
    return maps, boxes, (logits > own).sum(dim=1).tolist()
