"""From per-frame person boxes to tracks: boxes of skeletons, and linking them over frames.

D is the number of boxes in one video, over all its frames; `frames` int64 [D] gives each box its 0-based frame.
Overlaps use inclusive pixel coordinates (+1 in widths and heights), as the ACT evaluation does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from provscale.data.skeletons.clips import SkeletonClip


class SkeletonBoxes(NamedTuple):
    """The boxes of a clip's skeletons, one for every person seen in a frame, ordered by frame.

    Attributes:
        frames: int64 [D], 0-based.
        persons: int64 [D], the row in M: the skeleton is `clip.keypoints[persons[i], frames[i]]`.
        boxes: float32 [D, 4] xyxy in pixels.
    """

    frames: np.ndarray
    persons: np.ndarray
    boxes: np.ndarray


@dataclass(eq=False)
class FrameDetections:
    """The scored boxes of one video, after the person detector's own suppression of duplicates.

    Attributes:
        video: as in the ground truth.
        frames: int64 [D], 0-based.
        boxes: float32 [D, 4] xyxy in pixels of the ground truth's frame.
        scores: float32 [D, K], higher is better, any range.
    """

    video: str
    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [..., 4] xyxy, broadcast against each other, with +1 widths; float64 [...]."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2]) + 1
    sides = np.maximum(sides, 0)
    overlap = sides[..., 0] * sides[..., 1]
    return overlap / (_area(first) + _area(second) - overlap)


def skeleton_boxes(clip: SkeletonClip, min_score: float = 0.0, margin: float = 0.0) -> SkeletonBoxes:
    """The extent of each skeleton's visible keypoints; persons without any are left out.

    Args:
        clip: keypoints [M, T, V, 2] in pixels.
        min_score: a keypoint is visible when its score is above this.
        margin: share of the width and height added on each side. Keypoints end at eyes and ankles, annotated boxes
            at hair and shoes.
    """
    visible = clip.scores > min_score
    frames, persons = np.nonzero(visible.any(axis=2).T)
    points, seen = clip.keypoints[persons, frames], visible[persons, frames][..., None]
    low = np.where(seen, points, np.inf).min(axis=1)
    high = np.where(seen, points, -np.inf).max(axis=1)
    border = margin * (high - low)
    return SkeletonBoxes(frames, persons, np.concatenate([low - border, high + border], axis=1).astype(np.float32))


def link_boxes(frames: np.ndarray, boxes: np.ndarray, min_iou: float = 0.5) -> list[np.ndarray]:
    """Links boxes of consecutive frames into tracks.

    Between two frames the one-to-one assignment with the largest sum of IoUs is taken (Hungarian method) among pairs
    with an IoU of at least `min_iou`. A track ends at the first frame where it finds no box.

    Args:
        frames: int [D].
        boxes: [D, 4] xyxy.
        min_iou: smallest overlap of a link.

    Returns:
        For each track the positions (int64, into the D boxes) of its boxes, one per frame, in order of frames. Every
        box is in exactly one track.
    """
    order = np.argsort(frames, kind="stable")
    numbers, starts = np.unique(frames[order], return_index=True)
    groups = np.split(order, starts[1:])
    follower = np.full(len(order), -1)
    # All pairs of neighbouring frames at once, filled up with NaN boxes, which overlap nothing.
    width = max((len(group) for group in groups), default=0)
    padded = np.full((len(groups), width, 4), np.nan)
    for row, group in enumerate(groups):
        padded[row, : len(group)] = boxes[group]
    ious = np.nan_to_num(box_iou(padded[:-1, :, None], padded[1:, None]), nan=0.0)
    for pair in np.flatnonzero(np.diff(numbers) == 1):
        before, after = _assign(ious[pair], min_iou)
        follower[groups[pair][before]] = groups[pair + 1][after]
    tracks = []
    followed = np.zeros(len(order), dtype=bool)
    followed[follower[follower >= 0]] = True
    successors: list[int] = follower.tolist()
    for start in order[~followed[order]]:
        track = [int(start)]
        while successors[track[-1]] >= 0:
            track.append(successors[track[-1]])
        tracks.append(np.array(track))
    return tracks


def _assign(ious: np.ndarray, min_iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the best one-to-one pairs of `ious` [n, m] that reach `min_iou`."""
    good = ious >= min_iou
    # Nearly always every box has one partner, and there is nothing to decide.
    if good.sum(axis=0).max(initial=0) <= 1 and good.sum(axis=1).max(initial=0) <= 1:
        rows, columns = np.nonzero(good)
        return rows, columns
    rows, columns = linear_sum_assignment(np.where(good, ious, 0), maximize=True)
    kept = good[rows, columns]
    return rows[kept], columns[kept]


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)
