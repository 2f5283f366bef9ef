"""MaxBoxAccV2, and MaxBoxAcc: how well boxes drawn around a class activation map match the ground-truth boxes.

Convention of Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020) and their
public code wsolevaluation. V2: all contours; IoU 0.3, 0.5 and 0.7, each at its own best score threshold; their mean.
MaxBoxAcc (V1): the contour of the largest area; IoU 0.5 at its best threshold. It is also called GT-known localisation;
an image whose class is right besides, or among the five first, counts for top-1 or top-5 localisation. Boxes are
x0, y0, x1, y1 in pixels, integers, both ends inclusive.

Shapes: H x W image, h x w score map, T = 1000 score thresholds, D = 3 IoU thresholds, B samples, N boxes an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from provscale.errors import UserError
from provscale.evaluation.base import EVALUATORS, Evaluator, Gather, alone
from provscale.evaluation.localized_batch import localized_batch
from provscale.sample import Sample

IOU_PERCENTS = (30, 50, 70)
SCORE_THRESHOLDS: NDArray[np.float64] = np.arange(0, 1, 0.001)

# The convention truncates x * 224 / width. A data loader that scales boxes in float32 errs by up to 2e-5 there, so
# an exact 100 may arrive as 99.99999. The smallest true distance to the next integer is 1 / width: this nudge
# restores the exact truncation for images up to 20000 pixels wide.
TRUNCATION_NUDGE = 5e-5


def resize_scoremap(scoremap: NDArray[np.floating], image_size: tuple[int, int]) -> NDArray[np.float64]:
    """A score map [h, w] resized to `image_size` = (H, W) by cubic interpolation, in float64 as the convention does."""
    height, width = image_size
    return cv2.resize(scoremap.astype(np.float64), (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


def normalize_scoremap(scoremap: NDArray[np.floating]) -> NDArray[np.float64]:
    """A score map [H, W] scaled to span [0, 1]; zeros when it is constant or holds a NaN or an infinity.

    The convention leaves infinities undefined (its own code stops there); here they count as a failed map.
    """
    values = scoremap.astype(np.float64)
    if not np.isfinite(values).all() or values.min() == values.max():
        return np.zeros_like(values)
    values -= values.min()
    values /= values.max()
    return values


def truncate_boxes(boxes: ArrayLike, image_size: tuple[int, int], name: str = "box") -> NDArray[np.int64]:
    """Ground-truth boxes as the integers that the convention compares.

    Args:
        boxes: [4] or [N, 4] x0, y0, x1, y1 in pixels of the image; rows that are all NaN are padding.
        image_size: (H, W); x1 <= W and y1 <= H, else the boxes were not scaled with the image.
        name: what an error message calls them.

    Returns:
        [n, 4] int64, n >= 1, truncated towards zero.

    Raises:
        UserError: another shape, no box at all, a coordinate that is not finite or not inside, x1 < x0 or y1 < y0.
    """
    rows = np.asarray(boxes, dtype=np.float64)
    if rows.ndim not in (1, 2) or rows.shape[-1] != 4:
        raise UserError(f"{name}: boxes have shape {rows.shape}; allowed is [4] or [N, 4], x0 y0 x1 y1 in pixels")
    rows = rows.reshape(-1, 4)
    rows = rows[~np.isnan(rows).all(axis=1)]
    if len(rows) == 0:
        raise UserError(f"{name}: no ground-truth box (every row is NaN); give each sample at least one box")
    height, width = image_size
    # A NaN or an infinity fails one of these comparisons too.
    ordered = (rows[:, :2] >= 0) & (rows[:, :2] <= rows[:, 2:]) & (rows[:, 2:] <= (width, height))
    if not ordered.all():
        raise UserError(
            f"{name}: box {rows[~ordered.all(axis=1)][0].tolist()} must be x0 y0 x1 y1 in pixels of the network input, "
            f"0 <= x0 <= x1 <= {width} and 0 <= y0 <= y1 <= {height}; resize the boxes with the image"
        )
    return np.trunc(rows + TRUNCATION_NUDGE).astype(np.int64)


def box_iou_inclusive(boxes: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union [n, m] of integer boxes [n, 4] and [m, 4] whose ends both count (width x1 - x0 + 1)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = np.maximum(0, high - low + 1).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    other_areas = (others[:, 2:] - others[:, :2] + 1).prod(axis=1)
    return intersection / (areas[:, None] + other_areas[None, :] - intersection)


def contour_boxes(heatmap: NDArray[np.uint8], level: int) -> list[tuple[int, int, int, int]]:
    """Bounding boxes of all outer and inner contours of `heatmap > level`, one at least; that of the largest contour
    (by `cv2.contourArea`, the first of equal ones) comes first.

    As in the convention the right and lower ends are x + width and y + height, one past the contour, clipped to the
    last pixel; without any contour the box is 0, 0, 0, 0.
    """
    height, width = heatmap.shape
    binary = cv2.threshold(heatmap, level, 255, cv2.THRESH_BINARY)[1]
    contours = list(cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0])
    if len(contours) > 1:
        areas = [cv2.contourArea(contour) for contour in contours]
        contours.insert(0, contours.pop(int(np.argmax(areas))))
    rectangles = [cv2.boundingRect(contour) for contour in contours]
    return [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in rectangles] or [(0, 0, 0, 0)]


def ious_at_thresholds(scoremap: NDArray[np.floating], boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The IoU of one image at every score threshold: of its best contour, and of its largest one.

    The map is quantised to 256 levels, so most of the 1000 thresholds binarise it alike: each distinct binarisation
    is computed once, which changes no number.

    Args:
        scoremap: [H, W], any range; normalised here (a map that spans [0, 1] already is left as it is).
        boxes: [N, 4] int64 ground truth.

    Returns:
        [2, T] float64 in [0, 1], each the maximum over ground-truth boxes.
    """
    heatmap = (normalize_scoremap(scoremap) * 255).astype(np.uint8)
    levels = (SCORE_THRESHOLDS * heatmap.max()).astype(np.int64)
    present = np.flatnonzero(np.bincount(heatmap.ravel(), minlength=256))
    # `heatmap > level` depends only on how many of the values present lie at or below the level.
    kinds, kind_of_threshold = np.unique(np.searchsorted(present, levels, side="right"), return_inverse=True)
    predicted = [contour_boxes(heatmap, int(present[kind - 1])) for kind in kinds]
    starts = np.cumsum([0] + [len(found) for found in predicted[:-1]])
    flat = np.array([box for found in predicted for box in found], dtype=np.int64)
    ious = box_iou_inclusive(flat, boxes).max(axis=1)
    return np.stack([np.maximum.reduceat(ious, starts), ious[starts]])[:, kind_of_threshold]


@dataclass
class BoxCounts:
    """Counts of correctly localised images; usable alone on saved maps.

    >>> counts = BoxCounts()
    >>> counts.accumulate(np.eye(8), [0, 0, 7, 7])
    >>> counts.scores()["maxboxacc"]
    100.0

    Attributes:
        correct: [D, T] int64, images whose best IoU reaches `IOU_PERCENTS[d]` at `SCORE_THRESHOLDS[t]`.
        largest: [3, T] int64, images whose largest contour reaches IoU 0.5: all, those whose class is the first, those
            whose class is among the five first.
        images: how many images were accumulated.
        ranked: of how many of them the class's rank is known.
    """

    correct: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((len(IOU_PERCENTS), len(SCORE_THRESHOLDS)), dtype=np.int64)
    )
    largest: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, len(SCORE_THRESHOLDS)), dtype=np.int64))
    images: int = 0
    ranked: int = 0

    def accumulate(
        self,
        scoremap: NDArray[np.floating],
        boxes: ArrayLike,
        image_size: tuple[int, int] | None = None,
        name: str = "box",
        rank: int | None = None,
    ) -> None:
        """Adds one image.

        Args:
            scoremap: [h, w] float, any range, any size when `image_size` is given, else of the image's size.
            boxes: [4] or [N, 4] x0 y0 x1 y1 in pixels of the image, rows of NaN are padding.
            image_size: (H, W), the size to resize the map to; None = it has that size.
            name: what an error message calls this image.
            rank: how many classes have a larger logit than the image's own, or None.

        Raises:
            UserError: a map that is not 2-D or is empty, or boxes that `truncate_boxes` refuses.
        """
        if scoremap.ndim != 2 or scoremap.size == 0:
            raise UserError(f"{name}: the score map has shape {scoremap.shape}; allowed is [height, width], not empty")
        resized = scoremap if image_size is None else resize_scoremap(scoremap, image_size)
        best, largest = ious_at_thresholds(resized, truncate_boxes(boxes, (resized.shape[0], resized.shape[1]), name))
        for row, percent in enumerate(IOU_PERCENTS):
            self.correct[row] += best >= percent / 100
        self.images += 1
        self.ranked += rank is not None
        for row, below in enumerate((None, 1, 5)):
            if below is None or (rank is not None and rank < below):
                self.largest[row] += largest >= 0.5

    @staticmethod
    def total(parts: Sequence[BoxCounts]) -> BoxCounts:
        """The counts of all images of all `parts`."""
        return BoxCounts(
            np.sum([part.correct for part in parts], axis=0, dtype=np.int64),
            np.sum([part.largest for part in parts], axis=0, dtype=np.int64),
            sum(part.images for part in parts),
            sum(part.ranked for part in parts),
        )

    def scores(self) -> dict[str, float]:
        """All metrics, percentages 0 to 100; thresholds are the lowest of the best ones.

        `maxboxacc`: MaxBoxAccV2. `maxboxacc/iou<p>` and `maxboxacc/threshold<p>`: what it is the mean of.
        `maxboxacc_v1`: MaxBoxAcc, or GT-known localisation. `maxboxacc_v1/top1`, `maxboxacc_v1/top5`: top-1 and top-5
        localisation at the same threshold, `maxboxacc_v1/threshold`; left out where some image's rank is unknown.

        Raises:
            UserError: no image was accumulated.
        """
        if self.images == 0:
            raise UserError("maxboxacc: no image was evaluated; check that the evaluation split is not empty")
        accuracy = self.correct * 100.0 / self.images
        metrics = {"maxboxacc": float(accuracy.max(axis=1).mean())}
        for row, percent in enumerate(IOU_PERCENTS):
            metrics[f"maxboxacc/iou{percent}"] = float(accuracy[row].max())
        for row, percent in enumerate(IOU_PERCENTS):
            metrics[f"maxboxacc/threshold{percent}"] = float(SCORE_THRESHOLDS[accuracy[row].argmax()])
        first = int(self.largest[0].argmax())
        return (
            metrics
            | self.largest_at(first, "maxboxacc_v1")
            | {"maxboxacc_v1/threshold": float(SCORE_THRESHOLDS[first])}
        )

    def largest_at(self, threshold: int, name: str) -> dict[str, float]:
        """MaxBoxAcc, top-1 and top-5 localisation at the threshold of that number, under `name`."""
        known, top1, top5 = (self.largest[:, threshold] * 100.0 / self.images).tolist()
        return {name: known} | ({f"{name}/top1": top1, f"{name}/top5": top5} if self.ranked == self.images else {})

    def scores_at(self, chosen: Mapping[str, float]) -> dict[str, float]:
        """The same accuracies at thresholds that were chosen on other images: no number is a maximum over thresholds.

        `maxboxacc_at_validation_thresholds`, with `/iou<p>`: MaxBoxAccV2's counterpart; and
        `maxboxacc_v1_at_validation_threshold`, with `/top1` and `/top5`: MaxBoxAcc's.

        Args:
            chosen: metrics that `scores` gave of the other images.
        """
        if self.images == 0:
            raise UserError("maxboxacc: no image was evaluated; check that the evaluation split is not empty")
        names = [f"maxboxacc/threshold{percent}" for percent in IOU_PERCENTS]
        *places, first = (
            int(np.abs(SCORE_THRESHOLDS - chosen[name]).argmin()) for name in [*names, "maxboxacc_v1/threshold"]
        )
        accuracy = [float(row[place]) * 100.0 / self.images for row, place in zip(self.correct, places, strict=True)]
        name = "maxboxacc_at_validation_thresholds"
        single = {f"{name}/iou{percent}": value for percent, value in zip(IOU_PERCENTS, accuracy, strict=True)}
        return {
            name: float(np.mean(accuracy)),
            **single,
            **self.largest_at(first, "maxboxacc_v1_at_validation_threshold"),
        }


@EVALUATORS.register("maxboxacc")
class MaxBoxAcc(Evaluator):
    """MaxBoxAccV2 and V1 of the true class's activation map, resized to the network's input size.

    Reads `outputs["score_map"]` [B, h, w], `outputs["logits"]` [B, K] if there are any, and
    `sample.annotations["box"]`, float [B, 4] or [B, N, 4] (rows of NaN are padding), x0 y0 x1 y1 in pixels of
    `sample.inputs` [B, C, H, W].
    """

    requires = frozenset({"score_map"})

    def __init__(self, num_classes: int, group_names: Sequence[str] = ()) -> None:
        """Both arguments are part of every evaluator's signature and not used: the metric knows no class."""
        self.counts = BoxCounts()

    def accumulate(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Adds one batch.

        Raises:
            UserError: see `localized_batch`; or boxes or maps of a wrong shape or value.
        """
        maps, boxes, ranks = localized_batch("maxboxacc", sample, outputs)
        height, width = (int(side) for side in sample.inputs.shape[-2:])
        for scoremap, rows, index, rank in zip(maps, boxes, sample.index.tolist(), ranks, strict=True):
            self.counts.accumulate(scoremap, rows, (height, width), name=f"sample {index}", rank=rank)

    def compute(self, gather: Gather = alone) -> dict[str, float]:
        """See `BoxCounts.scores`; on test with `BoxCounts.scores_at` of validation's thresholds besides."""
        counts = BoxCounts.total(gather(self.counts))
        return counts.scores() | (counts.scores_at(self.validation) if self.validation else {})
