"""Localisation as SAT's own evaluator measures it (Wu et al., ICCV 2023): second figures, not MaxBoxAccV2's.

What differs from `maxboxacc.py`: the map is normalised before it is resized, bilinearly; few score thresholds, compared
as they are; the largest connected component (8 neighbours) instead of contours, the whole image where there is none;
and ONE threshold for every figure, the one with the largest sum of GT-known and top-1 localisation. SAT evaluates a
centre crop, which is up to the data set (`--data.options.evaluation centre_crop` for cub), and averages logits over ten
crops for its top-1 figures, which we do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from provscale.errors import UserError
from provscale.evaluation.base import EVALUATORS, Evaluator, Gather, alone
from provscale.evaluation.localized_batch import localized_batch
from provscale.evaluation.maxboxacc import box_iou_inclusive, truncate_boxes
from provscale.sample import Sample

THRESHOLDS = (0.3, 0.35, 0.4, 0.45)
FIGURES = ("gt_known", "top1", "top5", "iou30", "iou70")


def largest_component_box(heatmap: NDArray[np.floating], threshold: float) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the largest component of `heatmap > threshold`, the ends one past its last pixel; the whole of
    [H, W], 0, 0, W, H, where there is none."""
    binary = (heatmap > threshold).astype(np.uint8)
    _, _, statistics, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    if len(statistics) == 1:
        return 0, 0, heatmap.shape[1], heatmap.shape[0]
    x, y, width, height, _ = statistics[1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())].tolist()
    return x, y, x + width, y + height


def component_ious(
    scoremap: NDArray[np.floating], boxes: NDArray[np.int64], image_size: tuple[int, int]
) -> NDArray[np.float64]:
    """The IoU at each of `THRESHOLDS`, the maximum over ground-truth boxes [N, 4], of a map [h, w] of any range.

    A map with a NaN or an infinity counts as all zeros.
    """
    values = scoremap if np.isfinite(scoremap).all() else np.zeros_like(scoremap)
    normal = (values - values.min()) / (values.max() - values.min() + 1e-5)
    heatmap = cv2.resize(normal, (image_size[1], image_size[0]), interpolation=cv2.INTER_LINEAR)
    found = np.array([largest_component_box(heatmap, threshold) for threshold in THRESHOLDS], dtype=np.int64)
    return box_iou_inclusive(found, boxes).max(axis=1)


@EVALUATORS.register("sat_localization")
class SATLocalization(Evaluator):
    """Reads what `maxboxacc` reads, and needs logits.

    `sat/gt_known`, `sat/top1`, `sat/top5`: images with an IoU of 0.5, with a right class besides. `sat/iou30`,
    `sat/iou50` (= `sat/gt_known`), `sat/iou70` and their mean `sat/iou_mean`; `sat/threshold`. All at that threshold,
    which SAT chooses on the very images it is evaluated on. On test the same figures besides at the threshold that
    validation chose for the same weights, as `sat_at_validation_threshold/...`.
    """

    requires = frozenset({"score_map", "logits"})

    def __init__(self, num_classes: int, group_names: Sequence[str] = ()) -> None:
        """Both arguments are part of every evaluator's signature and not used."""
        self.correct = np.zeros((len(FIGURES), len(THRESHOLDS)), dtype=np.int64)
        self.images = 0

    def accumulate(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Adds one batch. Raises UserError: see `localized_batch`; or no logits."""
        maps, boxes, ranks = localized_batch("sat_localization", sample, outputs)
        height, width = (int(side) for side in sample.inputs.shape[-2:])
        for scoremap, rows, index, rank in zip(maps, boxes, sample.index.tolist(), ranks, strict=True):
            if rank is None:
                raise UserError(f"{EVALUATORS.key}: sat_localization needs logits, which score maps alone do not give")
            truth = np.minimum(truncate_boxes(rows, (height, width), f"sample {index}"), [width - 1, height - 1] * 2)
            ious = component_ious(scoremap, truth, (height, width))
            known = ious >= 0.5
            self.correct += [known, known & (rank < 1), known & (rank < 5), ious >= 0.3, ious >= 0.7]
            self.images += 1

    def compute(self, gather: Gather = alone) -> dict[str, float]:
        """The metrics named in the class's docstring. Raises UserError: no image was accumulated."""
        parts = gather((self.correct, self.images))
        images = sum(count for _, count in parts)
        if images == 0:
            raise UserError("sat_localization: no image was evaluated; check that the evaluation split is not empty")
        shares = np.sum([correct for correct, _ in parts], axis=0) * 100.0 / images
        best = int((shares[0] + shares[1]).argmax())
        found = named(shares[:, best], "sat") | {"sat/threshold": THRESHOLDS[best]}
        if self.validation:
            place = THRESHOLDS.index(self.validation["sat/threshold"])
            found |= named(shares[:, place], "sat_at_validation_threshold")
        return found


def named(shares: NDArray[np.float64], prefix: str) -> dict[str, float]:
    """The figures at one threshold; `shares` has those of `FIGURES`, percent."""
    found = {f"{prefix}/{name}": float(value) for name, value in zip(FIGURES, shares, strict=True)}
    found[f"{prefix}/iou50"] = found[f"{prefix}/gt_known"]
    mean = (found[f"{prefix}/iou30"] + found[f"{prefix}/iou50"] + found[f"{prefix}/iou70"]) / 3
    return found | {f"{prefix}/iou_mean": mean}
