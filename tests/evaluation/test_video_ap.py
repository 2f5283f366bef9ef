"""Video AP and frame AP against numbers worked out by hand and against a plain, slow implementation written here."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

from provscale.data.skeletons.tracks import FrameDetections
from provscale.data.skeletons.tubes import GroundTruth, Tube
from provscale.errors import UserError
from provscale.evaluation.video_ap import (
    ACT,
    CHERON,
    TubeConventions,
    average_precision,
    build_tubes,
    frame_ap,
    frame_average_precision,
    match,
    suppress,
    tube_average_precision,
    tube_iou,
    video_ap,
)

BOX = [0, 0, 9, 9]


def tube(video: str, label: int, first: int, length: int, score: float | None = None, shift: float = 0) -> Tube:
    """A still 10 x 10 pixel box, moved down by `shift`."""
    return Tube(video, label, first, np.array([[0, shift, 9, shift + 9]] * length, dtype=np.float32), score)


def ground_truth(*tubes: Tube) -> GroundTruth:
    by_video: dict[str, list[Tube]] = defaultdict(list)
    for item in tubes:
        by_video[item.video].append(item)
    videos = list(by_video)
    return GroundTruth(by_video, dict.fromkeys(videos, 100), dict.fromkeys(videos, (240, 320)), [], videos)


# by hand


def test_tube_iou_is_mean_spatial_times_temporal() -> None:
    # Frames 0..9 and 5..14: 5 common of 15; boxes shifted by 5 of 10 pixels overlap in 50 of 150.
    first = [tube("a", 0, 0, 10)]
    second = [tube("a", 0, 5, 10, shift=5), tube("a", 0, 10, 3), tube("a", 0, 0, 10), tube("a", 0, 2, 4)]
    np.testing.assert_allclose(tube_iou(first, second), [[5 / 15 * 50 / 150, 0, 1, 4 / 10]])
    np.testing.assert_allclose(tube_iou(second, first)[:, 0], tube_iou(first, second)[0])
    assert tube_iou([], second).shape == (0, 4)


def test_average_precision_of_raw_curve_and_envelope() -> None:
    # Hits 1, 0, 1 of 2: (precision, recall) = (1, 0), (1, 1/2), (1/2, 1/2), (2/3, 1).
    scores, positive = np.array([0.1, 0.9, 0.5]), np.array([True, True, False])
    trapezoids = (1 + 1) / 2 * 0.5 + 0 + (1 / 2 + 2 / 3) / 2 * 0.5
    assert average_precision(scores, positive, 2) == pytest.approx(trapezoids)
    assert average_precision(scores, positive, 2, envelope=True) == pytest.approx(1 * 0.5 + 2 / 3 * 0.5)
    assert average_precision(scores[:0], positive[:0], 2) == 0
    assert np.isnan(average_precision(scores, positive, 0))


def test_match_takes_the_best_remaining_or_the_best_of_all() -> None:
    ious = np.array([[0.9, 0.6], [0.8, 0.7], [0.6, 0.2]])
    assert match(ious, 0.5).tolist() == [True, True, False]
    assert match(ious, 0.5, remaining_only=False).tolist() == [True, False, False]
    assert match(ious, 0.9).tolist() == [True, False, False]  # at the threshold counts
    assert match(ious[:, :0], 0.5).tolist() == [False] * 3


def test_suppression_keeps_an_overlap_of_exactly_the_limit_in_act_only() -> None:
    ious = np.array([[1, 0.3, 0.31], [0.3, 1, 0], [0.31, 0, 1]])
    scores = np.array([0.9, 0.5, 0.95])
    assert suppress(ious, scores).tolist() == [2, 1]
    ious[0, 2] = ious[2, 0] = 0.3
    assert suppress(ious, scores).tolist() == [2, 0, 1]
    assert suppress(ious, scores, dataclasses.replace(CHERON, nms_iou=0.3)).tolist() == [2, 1]


def test_video_ap_by_hand() -> None:
    # Class 0: the better-scored detection covers 12 of 20 frames (IoU 0.6), the other, in video b, all of them.
    truth = ground_truth(tube("a", 0, 0, 20), tube("b", 0, 0, 20), tube("b", 1, 30, 20, shift=50))
    found = [tube("a", 0, 0, 12, 0.9), tube("b", 0, 0, 20, 0.8), tube("a", 1, 0, 20, 0.7)]
    at_06 = tube_average_precision(found, truth, (0.5, 0.75))
    # At 0.75: misses, then hits: (1, 0), (0, 0), (1/2, 1/2): one trapezoid of 1/2 x 1/4. Class 1: its only detection
    # is in the wrong video.
    np.testing.assert_allclose(at_06[:, 0], [1, 0.125])
    np.testing.assert_allclose(at_06[:, 1], 0)
    assert np.isnan(at_06[:, 2:]).all()
    means = video_ap(found, truth)
    # 0.5, 0.55, 0.6 give 1, the other seven 0.125; mean over the two classes that occur.
    expected = {"video_ap@0.2": 50, "video_ap@0.5": 50, "video_ap@0.75": 6.25, "video_ap@0.5:0.95": 5 * (3 + 7 / 8)}
    assert means == pytest.approx(expected)


def test_two_people_close_together_are_one_after_suppression() -> None:
    # 10 x 10 boxes shifted by 3 overlap in 70 of 130 pixels, above 0.3.
    people = [tube("a", 0, 0, 20), tube("a", 0, 0, 20, shift=3)]
    found = [dataclasses.replace(person, score=1.0) for person in people]
    assert video_ap(found, ground_truth(*people))["video_ap@0.5"] == pytest.approx(50)
    everything = dataclasses.replace(ACT, nms_iou=1.0)
    assert video_ap(found, ground_truth(*people), everything)["video_ap@0.5"] == pytest.approx(100)


def test_tubes_are_linked_and_short_ones_dropped() -> None:
    # A still person for 15 frames, one for 14 only, and one whose boxes do not overlap from frame to frame.
    frames = np.concatenate([np.arange(15), np.arange(14), np.arange(16)])
    boxes = np.array([BOX] * 15 + [[50, 0, 59, 9]] * 14 + [[20 * i, 99, 20 * i + 9, 109] for i in range(16)])
    scores = np.stack([np.arange(45.0), np.ones(45)], axis=1)
    found = build_tubes(FrameDetections("a", frames, boxes, scores))
    # Means of 0..14 and of ones.
    assert [(item.label, item.first_frame, len(item), item.score) for item in found] == [(0, 0, 15, 7), (1, 0, 15, 1)]


def test_cheron_tubes_have_22_frames_and_the_mean_of_the_best_40() -> None:
    def still(length: int) -> FrameDetections:
        return FrameDetections("a", np.arange(3, 3 + length), np.tile(BOX, (length, 1)), np.arange(length)[:, None])

    assert build_tubes(still(21), CHERON) == []
    assert [(item.first_frame, item.score) for item in build_tubes(still(22), CHERON)] == [(3, 10.5)]
    assert [item.score for item in build_tubes(still(50), CHERON)] == [np.arange(10, 50).mean()]


@pytest.mark.parametrize(
    ("bad", "message"),
    [(tube("a", 0, 0, 5), "score None"), (tube("a", 24, 0, 5, 1.0), "class 24"), (tube("a", 0, 0, 5, np.nan), "nan"),
     (tube("z", 0, 0, 5, 1.0), "'z': detections in a video that is not in the test list")],
)  # fmt: skip
def test_bad_detections(bad: Tube, message: str) -> None:
    with pytest.raises(UserError, match=message):
        video_ap([bad], ground_truth(tube("a", 0, 0, 5)))


def test_bad_frame_detections() -> None:
    truth = ground_truth(tube("a", 0, 0, 5))
    good = FrameDetections("a", np.arange(5), np.tile(BOX, (5, 1)), np.ones((5, 24)))
    assert frame_ap([good], truth) == pytest.approx(100)
    for bad in ([good, good], [dataclasses.replace(good, scores=good.scores * np.nan)]):
        with pytest.raises(UserError, match="come twice or have scores that are not finite"):
            frame_ap(bad, truth)


# against a plain implementation of the published conventions: dictionaries of frames, one box and one tube at a time


def plain_box_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    overlap = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return overlap / (sum(areas) - overlap)


def plain_tube_iou(a: Tube, b: Tube) -> float:
    first, second = (
        {item.first_frame + row: [float(value) for value in box] for row, box in enumerate(item.boxes)}
        for item in (a, b)
    )
    common = first.keys() & second.keys()
    if not common:
        return 0.0
    union = max(*first, *second) - min(*first, *second) + 1
    return sum(plain_box_iou(first[f], second[f]) for f in common) / len(common) * len(common) / union


def plain_curve(hits: list[bool], total: int, envelope: bool) -> float:
    points = [(1.0, 0.0)] + [(sum(hits[:n]) / n, sum(hits[:n]) / total) for n in range(1, len(hits) + 1)]
    area = 0.0
    for place in range(1, len(points)):
        (before, low), (after, high) = points[place - 1 : place + 1]
        height = max(p for p, _ in points[place:]) if envelope else (before + after) / 2
        area += (high - low) * height
    return area


def plain_video_ap(
    found: list[Tube], truth: list[Tube], label: int, threshold: float, conventions: TubeConventions
) -> float:
    ranked = sorted((t for t in found if t.label == label), key=lambda t: -float(t.score or 0))
    kept: list[Tube] = []
    for item in ranked:
        rivals = [plain_tube_iou(item, other) for other in kept if other.video == item.video]
        limit = conventions.nms_iou
        if all(iou < limit or (iou == limit and not conventions.nms_drops_equal) for iou in rivals):
            kept.append(item)
    wanted = [t for t in truth if t.label == label]
    open_tubes = list(wanted)
    hits = []
    for item in kept:
        pool = [t for t in (open_tubes if conventions.remaining_only else wanted) if t.video == item.video]
        best = max(pool, key=lambda t: plain_tube_iou(item, t), default=None)
        hit = best is not None and plain_tube_iou(item, best) >= threshold and any(t is best for t in open_tubes)
        hits.append(hit)
        if hit:
            open_tubes = [t for t in open_tubes if t is not best]
    return plain_curve(hits, len(wanted), conventions.envelope)


def random_tubes(rng: np.random.Generator, scored: bool) -> list[Tube]:
    """Tubes of 3 classes in 6 videos, most of them near the places where others are."""
    tubes = []
    for place in range(120 if scored else 24):
        length = int(rng.integers(3, 12))
        corner = rng.choice([0.0, 6.0, 40.0], size=2) + rng.uniform(0, 3, (length, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, 12, (length, 2))], axis=1).astype(np.float32)
        score = float(rng.uniform()) if scored else None
        tubes.append(Tube(f"v{place % 6}", int(rng.integers(3)), int(rng.integers(0, 6)), boxes, score))
    return tubes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("conventions", [ACT, CHERON], ids=["act", "cheron"])
def test_video_ap_equals_the_plain_implementation(seed: int, conventions: TubeConventions) -> None:
    rng = np.random.default_rng(seed)
    truth, found = random_tubes(rng, scored=False), random_tubes(rng, scored=True)
    thresholds = (0.1, 0.2, 0.3, 0.5)
    result = tube_average_precision(found, ground_truth(*truth), thresholds, conventions, num_classes=3)
    expected = [[plain_video_ap(found, truth, label, t, conventions) for label in range(3)] for t in thresholds]
    np.testing.assert_allclose(result, expected, atol=1e-12)
    assert 0.02 < result[:2].mean() < 0.9  # neither trivial end


def test_frame_ap_equals_the_plain_implementation() -> None:
    rng = np.random.default_rng(0)
    truth = random_tubes(rng, scored=False)
    detections = []
    for place in range(6):
        frames = rng.integers(0, 17, 60)
        corner = rng.choice([0.0, 6.0, 40.0], size=(60, 2)) + rng.uniform(0, 3, (60, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, 12, (60, 2))], axis=1).astype(np.float32)
        detections.append(FrameDetections(f"v{place}", frames, boxes, rng.uniform(size=(60, 3))))
    expected = []
    for label in range(3):
        boxes_left = defaultdict(list)
        for item in truth:
            for row, box in enumerate(item.boxes.tolist()):
                if item.label == label:
                    boxes_left[item.video, item.first_frame + row].append(box)
        total = sum(map(len, boxes_left.values()))
        ranked = [
            (-d.scores[row, label], d.video, d.frames[row], d.boxes[row].tolist())
            for d in detections
            for row in range(60)
        ]
        hits = []
        for _, video, frame, box in sorted(ranked):
            rest = boxes_left[video, frame]
            ious = [plain_box_iou(box, other) for other in rest]
            hits.append(bool(ious) and max(ious) >= 0.5)
            if hits[-1]:
                rest.pop(ious.index(max(ious)))
        expected.append(plain_curve(hits, total, envelope=False))
    result = frame_average_precision(detections, ground_truth(*truth))
    np.testing.assert_allclose(result, expected, atol=1e-12)
    assert 0.02 < result.mean() < 0.9
    assert frame_ap(detections, ground_truth(*truth)) == pytest.approx(100 * np.mean(expected))
