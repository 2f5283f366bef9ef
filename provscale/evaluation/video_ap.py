"""Average precision of action tubes (video AP) and of boxes in frames (frame AP), as the ACT detector measures them.

Source: V. Kalogeiton et al., "Action Tubelet Detector for Spatio-Temporal Action Localization", ICCV 2017, and its
public evaluation code. K classes, D boxes of one video, G ground-truth tubes, R IoU thresholds. Frames count from 0.
Overlaps use inclusive pixel and frame numbers (+1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from provscale.data.skeletons.tracks import FrameDetections, box_iou, link_boxes
from provscale.data.skeletons.tubes import UCF101_24_CLASSES, GroundTruth, Tube
from provscale.errors import UserError

RANGE = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""The thresholds of video AP 0.5:0.95."""


@dataclass(frozen=True)
class TubeConventions:
    """What evaluations of action tubes disagree about.

    Attributes:
        min_length: tubes with fewer frames are dropped.
        top_frames: a tube's score for a class is the mean over this many of its best frames; None: over all.
        nms_iou: of two tubes of one class and video that overlap more than this, the weaker is dropped.
        nms_drops_equal: whether an overlap of exactly `nms_iou` drops, too.
        remaining_only: True: a detection is compared with the ground truth not yet found, so it may take its second
            best. False: with all, and a second detection of the same tube is an error.
        envelope: True: AP is the area under the largest precision at this or a higher recall (PASCAL VOC 2010).
            False: the trapezoids under the raw curve, which starts at precision 1, recall 0.
    """

    min_length: int
    top_frames: int | None
    nms_iou: float
    nms_drops_equal: bool
    remaining_only: bool
    envelope: bool


ACT = TubeConventions(15, None, 0.3, nms_drops_equal=False, remaining_only=True, envelope=False)

CHERON = TubeConventions(22, 40, 0.2, nms_drops_equal=True, remaining_only=False, envelope=True)
"""G. Cheron et al., "A flexible model for training action localization with varying levels of supervision", NeurIPS
2018, as in the evaluation of its public code. That code also cuts tubes in time, where the smoothed class score
falls below a threshold tuned per class on validation videos: a part of the detector, not done here."""


def build_tubes(detections: FrameDetections, conventions: TubeConventions = ACT, min_iou: float = 0.5) -> list[Tube]:
    """Links boxes of consecutive frames with an IoU of at least `min_iou`; one tube for each track and class.

    Boxes carry the scores of all classes, so linking does not depend on the class, and the tubes of one track share
    their `boxes`. A tube's score is the mean over its frames (see `TubeConventions`).
    """
    tubes = []
    for track in link_boxes(detections.frames, detections.boxes, min_iou):
        if len(track) < conventions.min_length:
            continue
        first, boxes = int(detections.frames[track[0]]), detections.boxes[track]
        scores = detections.scores[track].astype(np.float64)
        if conventions.top_frames is not None:
            scores = np.sort(scores, axis=0)[-conventions.top_frames :]
        means = scores.mean(axis=0).tolist()
        tubes += [Tube(detections.video, label, first, boxes, score) for label, score in enumerate(means)]
    return tubes


def tube_iou(first: Sequence[Tube], second: Sequence[Tube]) -> np.ndarray:
    """Spatio-temporal IoU of tubes of one video: mean spatial IoU over the common frames x temporal IoU.

    Returns:
        float64 [len(first), len(second)] in [0, 1].
    """
    ious = np.zeros((len(first), len(second)))
    if not first or not second:
        return ious
    firsts, ends = np.array([tube.first_frame for tube in second]), np.array([tube.end_frame for tube in second])
    start, end = int(firsts.min()), int(ends.max())
    boxes, present = np.zeros((len(second), end - start, 4)), np.zeros((len(second), end - start), dtype=bool)
    for column, tube in enumerate(second):
        boxes[column, tube.first_frame - start : tube.end_frame - start] = tube.boxes
        present[column, tube.first_frame - start : tube.end_frame - start] = True
    for row, tube in enumerate(first):
        low, high = max(tube.first_frame, start), min(tube.end_frame, end)
        if low < high:
            own = tube.boxes[low - tube.first_frame : high - tube.first_frame]
            spatial = box_iou(boxes[:, low - start : high - start], own) * present[:, low - start : high - start]
            # (sum / common frames) x (common frames / union): the common frames cancel.
            union = np.maximum(ends, tube.end_frame) - np.minimum(firsts, tube.first_frame)
            ious[row] = spatial.sum(axis=1) / union
    return ious


def suppress(ious: np.ndarray, scores: np.ndarray, conventions: TubeConventions = ACT) -> np.ndarray:
    """Non-maximum suppression of n tubes.

    Args:
        ious: [n, n], `tube_iou` of the tubes with themselves.
        scores: [n].

    Returns:
        int64, the tubes that stay, by descending score (equal scores: in input order).
    """
    waiting = np.argsort(-scores, kind="stable")
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        overlaps = ious[best, waiting]
        dropped = overlaps >= conventions.nms_iou if conventions.nms_drops_equal else overlaps > conventions.nms_iou
        waiting = waiting[~dropped]
    return np.array(kept, dtype=np.int64)


def match(ious: np.ndarray, threshold: float, remaining_only: bool = True) -> np.ndarray:
    """Which detections are positive: each takes the ground truth it overlaps most, if by at least `threshold`.

    Args:
        ious: [n, G], detections by descending score.
        threshold: smallest IoU of a positive.
        remaining_only: see `TubeConventions`.

    Returns:
        bool [n].
    """
    positive = np.zeros(len(ious), dtype=bool)
    taken = np.zeros(ious.shape[1], dtype=bool)
    for row in np.flatnonzero(ious.max(axis=1, initial=0) >= threshold):
        overlaps = np.where(taken, -1.0, ious[row]) if remaining_only else ious[row]
        best = int(overlaps.argmax())
        if overlaps[best] >= threshold and not taken[best]:
            positive[row] = taken[best] = True
    return positive


def average_precision(scores: np.ndarray, positive: np.ndarray, num_truth: int, envelope: bool = False) -> float:
    """Area under the precision-recall curve, in [0, 1]; NaN without ground truth.

    Args:
        scores: [n]; equal scores keep their order.
        positive: bool [n].
        num_truth: number of ground-truth tubes or boxes.
        envelope: see `TubeConventions`.
    """
    if not num_truth:
        return float("nan")
    found = np.cumsum(positive[np.argsort(-scores, kind="stable")])
    precision = np.concatenate([[1.0], found / np.arange(1, len(found) + 1)])
    recall = np.concatenate([[0.0], found / num_truth])
    if envelope:
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(recall) * best[1:]))
    return float(np.trapezoid(precision, recall))


def tube_average_precision(
    detections: Iterable[Tube],
    truth: GroundTruth,
    thresholds: Sequence[float] = (0.2, *RANGE),
    conventions: TubeConventions = ACT,
    num_classes: int = len(UCF101_24_CLASSES),
) -> np.ndarray:
    """Average precision of tubes, per threshold and class, over `truth.test_videos`.

    Args:
        detections: scored tubes, several of one class in a video allowed; suppressed here.
        truth: only its tubes of the test videos count.
        thresholds: R spatio-temporal IoUs.
        conventions: `ACT` or `CHERON`.
        num_classes: K.

    Returns:
        float64 [R, K] in [0, 1]; NaN for a class without ground truth.

    Raises:
        UserError: a detection in no test video, without a finite score, or of a class out of range.
    """
    by_video: dict[str, list[Tube]] = {video: [] for video in truth.test_videos}
    for tube in detections:
        if tube.score is None or not np.isfinite(tube.score) or not 0 <= tube.label < num_classes:
            raise UserError(f"{tube.video}: a tube of class {tube.label} with score {tube.score}; need a finite score")
        _check_listed(tube.video, by_video)
        by_video[tube.video].append(tube)
    scores: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    positives: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    totals = np.zeros(num_classes, dtype=np.int64)
    for video, tubes in by_video.items():
        # The tubes of one track differ in class and score only: overlaps are computed once a track.
        tracks: dict[tuple[int, int], tuple[int, Tube]] = {}
        members: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for tube in tubes:
            row, _ = tracks.setdefault((id(tube.boxes), tube.first_frame), (len(tracks), tube))
            members[tube.label].append((row, float(tube.score or 0.0)))
        distinct = [tube for _, tube in tracks.values()]
        among, with_truth = tube_iou(distinct, distinct), tube_iou(distinct, truth.tubes[video])
        labels = np.array([tube.label for tube in truth.tubes[video]], dtype=np.int64)
        totals += np.bincount(labels, minlength=num_classes)
        for label, pairs in members.items():
            rows, values = np.array([row for row, _ in pairs]), np.array([score for _, score in pairs])
            kept = suppress(among[np.ix_(rows, rows)], values, conventions)
            ious = with_truth[rows[kept]][:, labels == label]
            scores[label].append(values[kept])
            positives[label].append(np.stack([match(ious, value, conventions.remaining_only) for value in thresholds]))
    result = np.zeros((len(thresholds), num_classes))
    for label in range(num_classes):
        values = np.concatenate([np.zeros(0), *scores[label]])
        flags = np.concatenate([np.zeros((len(thresholds), 0), dtype=bool), *positives[label]], axis=1)
        for row in range(len(thresholds)):
            result[row, label] = average_precision(values, flags[row], int(totals[label]), conventions.envelope)
    return result


def video_ap(detections: Iterable[Tube], truth: GroundTruth, conventions: TubeConventions = ACT) -> dict[str, float]:
    """Video AP in percent, mean over the classes with ground truth: `video_ap@0.2`, `@0.5`, `@0.75`, `@0.5:0.95`."""
    means = 100 * np.nanmean(tube_average_precision(detections, truth, (0.2, *RANGE), conventions), axis=1)
    single = {f"video_ap@{value:g}": float(means[1 + RANGE.index(value)]) for value in (0.5, 0.75)}
    return {"video_ap@0.2": float(means[0]), **single, "video_ap@0.5:0.95": float(means[1:].mean())}


def frame_average_precision(
    detections: Iterable[FrameDetections], truth: GroundTruth, threshold: float = 0.5
) -> np.ndarray:
    """Average precision of boxes in frames, per class, over `truth.test_videos`: float64 [K] in [0, 1].

    ACT conventions: by descending score, a box takes the remaining box of its class and frame that it overlaps most.

    Raises:
        UserError: a detection in no test video, or scores that are not finite.
    """
    videos, seen = set(truth.test_videos), set[str]()
    scores: list[np.ndarray] = []
    positives: list[np.ndarray] = []
    for item in detections:
        _check_listed(item.video, videos)
        if item.video in seen or not np.isfinite(item.scores).all():
            raise UserError(f"{item.video}: detections come twice or have scores that are not finite; correct them")
        seen.add(item.video)
        positives.append(np.zeros(item.scores.shape, dtype=bool))
        scores.append(item.scores)
        for label in {tube.label for tube in truth.tubes[item.video]}:
            tubes = [tube for tube in truth.tubes[item.video] if tube.label == label]
            positives[-1][:, label] = _match_frames(item, item.scores[:, label], tubes, threshold)
    num_classes = scores[0].shape[1] if scores else len(UCF101_24_CLASSES)
    totals = np.zeros(num_classes, dtype=np.int64)
    for video in videos:
        for tube in truth.tubes[video]:
            totals[tube.label] += len(tube)
    return np.array([
        average_precision(
            np.concatenate([np.zeros(0), *(part[:, label] for part in scores)]),
            np.concatenate([np.zeros(0, dtype=bool), *(part[:, label] for part in positives)]),
            int(totals[label]),
        )
        for label in range(num_classes)
    ])  # fmt: skip


def frame_ap(detections: Iterable[FrameDetections], truth: GroundTruth, threshold: float = 0.5) -> float:
    """Frame AP in percent, mean over the classes with ground truth."""
    return float(100 * np.nanmean(frame_average_precision(detections, truth, threshold)))


def _match_frames(item: FrameDetections, scores: np.ndarray, tubes: Sequence[Tube], threshold: float) -> np.ndarray:
    """Which boxes of one video and class are positive, bool [D]: `match` in every frame, all frames at once."""
    frames = item.frames
    ious = np.zeros((len(frames), len(tubes)))
    for column, tube in enumerate(tubes):
        inside = np.flatnonzero((frames >= tube.first_frame) & (frames < tube.end_frame))
        ious[inside, column] = box_iou(item.boxes[inside], tube.boxes[frames[inside] - tube.first_frame])
    order = np.lexsort((-scores, frames))
    rank = np.arange(len(order)) - np.searchsorted(frames[order], frames[order])
    positive = np.zeros(len(frames), dtype=bool)
    taken = np.zeros((frames.max(initial=0) + 1, len(tubes)), dtype=bool)
    for turn in range(rank.max(initial=-1) + 1):
        rows = order[rank == turn]
        overlaps = np.where(taken[frames[rows]], -1.0, ious[rows])
        best = overlaps.argmax(axis=1)
        good = overlaps[np.arange(len(rows)), best] >= threshold
        positive[rows[good]] = taken[frames[rows[good]], best[good]] = True
    return positive


def _check_listed(video: str, videos: Container[str]) -> None:
    if video not in videos:
        raise UserError(f"'{video}': detections in a video that is not in the test list; evaluate the test videos only")
