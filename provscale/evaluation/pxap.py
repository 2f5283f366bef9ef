"""PxAP: average precision of a score map's pixels against object masks (Choe et al., CVPR 2020, OpenImages' metric).

Their code sorts scores into bins [0, 0.001), ..., [0.999, 1), [1, 2), [2, 3); precision and recall are taken at every
bin's lower edge, and the area is a sum of rectangles, precision times the gain in recall; empty bins above all scores
(the last one always is) have no precision and take no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from provscale.errors import UserError
from provscale.evaluation.base import EVALUATORS, Evaluator, Gather, alone
from provscale.evaluation.gradient_energy import object_mask_of
from provscale.evaluation.maxboxacc import SCORE_THRESHOLDS, normalize_scoremap, resize_scoremap
from provscale.sample import Sample

EDGES = np.append(SCORE_THRESHOLDS, [1.0, 2.0, 3.0])


@EVALUATORS.register("pxap")
class PxAP(Evaluator):
    """`pxap`, 0 to 100, of the true class's activation map, resized (cubic) and normalised as for `maxboxacc`.

    Reads `outputs["score_map"]` [B, h, w] and `sample.annotations["object_mask"]` [B, 1, H, W], 1 = object; every other
    pixel is background (these data sets have no ignored regions).
    """

    requires = frozenset({"score_map"})

    def __init__(self, num_classes: int, group_names: Sequence[str] = ()) -> None:
        """Both arguments are part of every evaluator's signature and not used."""
        self.histograms = np.zeros((2, len(EDGES) - 1), dtype=np.int64)  # of background and of object pixels

    def accumulate(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Adds one batch. Raises UserError: no score map, or no object mask (or one that cannot be used)."""
        if "score_map" not in outputs:
            raise UserError(f"{EVALUATORS.key}: pxap needs a network that gives 'score_map'; choose one or remove it")
        if "object_mask" not in sample.annotations:
            raise UserError(f"{EVALUATORS.key}: pxap needs the annotation 'object_mask'; choose a data set with masks, "
                            "or remove pxap")  # fmt: skip
        height, width = (int(side) for side in sample.inputs.shape[-2:])
        names = [f"sample {index}" for index in sample.index.tolist()]
        masks = object_mask_of(sample, (height, width), names).bool().numpy()
        for scoremap, mask in zip(outputs["score_map"].detach().cpu().double().numpy(), masks, strict=True):
            scores = normalize_scoremap(resize_scoremap(scoremap, (height, width))).ravel()
            bins = np.searchsorted(EDGES, scores, side="right") - 1
            for row in (0, 1):
                self.histograms[row] += np.bincount(bins[mask.ravel() == row], minlength=len(EDGES) - 1)

    def compute(self, gather: Gather = alone) -> dict[str, float]:
        """The metric named in the class's docstring. Raises UserError: no pixel of any object was evaluated."""
        false, true = np.sum(gather(self.histograms), axis=0)[:, ::-1].cumsum(axis=1)
        if true[-1] == 0:
            raise UserError("pxap: no object pixel was evaluated; check the masks of the evaluation split")
        chosen = (true + false) > 0
        precision = true[chosen] / (true + false)[chosen]
        recall = np.concatenate([[0.0], true[chosen] / true[-1]])
        return {"pxap": 100.0 * float((precision * np.diff(recall)).sum())}
