"""Pictures of where a network finds objects: score map, boxes and input gradient of the same few evaluated images.

Shapes: N images of H x W pixels, at most M true boxes each.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from provscale.data.splits import DataSplits
from provscale.evaluation.maxboxacc import (
    box_iou_inclusive,
    contour_boxes,
    normalize_scoremap,
    resize_scoremap,
    truncate_boxes,
)
from provscale.files import written_aside
from provscale.run.pictures import gradient_image, to_pictures
from provscale.sample import Sample

FILE = "localised.npz"
THRESHOLD = "maxboxacc_v1/threshold"
"""The metric that says at which score the box of a map's largest contour is drawn."""
DEFAULT_THRESHOLD = 0.2
"""Where no metric has chosen one."""
SIDE = 224
"""Smaller images are enlarged at least to it, so that boxes are thin lines."""
TRUE_BOX, FOUND_BOX = (255, 255, 255), (255, 90, 31)


@dataclass
class LocalisedPictures:
    """N images, as arrays that need no network to be looked at again.

    Attributes:
        images: uint8 [N, H, W, 3].
        heatmaps: float32 [N, H, W] in [0, 1], the true class's score map as MaxBoxAccV2 resizes and normalises it.
        gradients: float32 [N, H, W], norm over channels of the true class's input gradient.
        true_boxes: int64 [N, M, 4] x0 y0 x1 y1 in pixels, both ends inclusive; rows of -1 are padding.
        boxes: int64 [N, 4], that of the map's largest contour, at the score threshold.
        right: bool [N], whether the network's class is the true one.
        classes: names of the true classes, str [N].
        names: of the images, str [N].
    """

    images: NDArray[np.uint8]
    heatmaps: NDArray[np.float32]
    gradients: NDArray[np.float32]
    true_boxes: NDArray[np.int64]
    boxes: NDArray[np.int64]
    right: NDArray[np.bool_]
    classes: NDArray[np.str_]
    names: NDArray[np.str_]

    def save(self, path: Path) -> None:
        with written_aside(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> LocalisedPictures:
        with np.load(path, allow_pickle=False) as content:
            return cls(**content)

    def found(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H', W', 3]: the score map over the image, true boxes in white, the network's in orange."""
        colours = mpl.colormaps["viridis"](self.heatmaps[index])[..., :3] * 255
        picture = enlarged((0.5 * self.images[index] + 0.5 * colours).round().astype(np.uint8))
        factor = len(picture) // len(self.heatmaps[index])
        marked = [(box, TRUE_BOX) for box in self.true_boxes[index] if box[0] >= 0] + [(self.boxes[index], FOUND_BOX)]
        for (x0, y0, x1, y1), colour in ((box * factor, colour) for box, colour in marked):
            corners = (int(x0), int(y0)), (int(x1) + factor - 1, int(y1) + factor - 1)
            cv2.rectangle(picture, *corners, (0, 0, 0), 4)  # an edge that any background leaves visible
            cv2.rectangle(picture, *corners, colour, 2)
        return picture

    def gradient(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H', W', 3]: the input gradient, relative to its 99th percentile."""
        return enlarged(gradient_image(self.gradients[index]))

    def verdict(self, index: int) -> str:
        """The box's IoU with the best true box, and whether the class is right."""
        true = self.true_boxes[index]
        iou = float(box_iou_inclusive(self.boxes[index : index + 1], true[true[:, 0] >= 0]).max())
        return f"IoU {iou:.2f}, class {'right' if self.right[index] else 'wrong'}"


def enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each pixel repeated as often as it takes to have `SIDE` rows at least."""
    factor = -(-SIDE // len(picture))
    return np.ascontiguousarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))


def localised(
    sample: Sample, outputs: dict[str, Tensor], splits: DataSplits, names: list[str], threshold: float
) -> LocalisedPictures | None:
    """From evaluated samples on the CPU; None where they are no images or have no boxes.

    Args:
        outputs: `logits`, `score_map` and `input_gradient` of these samples.
        threshold: share of a map's maximum above which its contours are drawn, in [0, 1].
    """
    gradient = outputs["input_gradient"].cpu()
    shown = to_pictures(sample.inputs, sample.provenance_mask, gradient, splits.mean, splits.std, names)
    if shown is None or "box" not in sample.annotations:
        return None
    size = int(sample.inputs.shape[2]), int(sample.inputs.shape[3])
    maps = outputs["score_map"].double().cpu().numpy()
    heatmaps = np.stack([normalize_scoremap(resize_scoremap(one, size)) for one in maps])
    levels = (heatmaps * 255).astype(np.uint8)
    boxes = [contour_boxes(one, int(threshold * one.max()))[0] for one in levels]
    given = sample.annotations["box"].numpy()
    true = [truncate_boxes(rows, size, name) for rows, name in zip(given, names, strict=True)]
    padded = np.full((len(true), max(map(len, true)), 4), -1, dtype=np.int64)
    for place, rows in zip(padded, true, strict=True):
        place[: len(rows)] = rows
    targets = sample.targets[:, 0]
    return LocalisedPictures(
        shown.images,
        heatmaps.astype(np.float32),
        shown.gradients,
        padded,
        np.array(boxes, dtype=np.int64),
        (outputs["logits"].cpu().argmax(dim=1) == targets).numpy(),
        np.array([splits.class_names[label] for label in targets.tolist()]),
        np.array(names),
    )
