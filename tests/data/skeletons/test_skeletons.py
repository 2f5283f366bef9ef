"""Skeleton files, and tracks of skeletons. Fixtures are written here in the format of MMAction2."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from provscale.data.skeletons.clips import UCF101_CLASSES, SkeletonClip, read_skeletons, write_skeletons
from provscale.data.skeletons.tracks import box_iou, link_boxes, skeleton_boxes
from provscale.data.skeletons.tubes import UCF101_24_CLASSES
from provscale.errors import UserError

DUNK, DIVING = "BasketballDunk/v_BasketballDunk_g01_c01", "Diving/v_Diving_g02_c03"

# tracks; overlaps by hand with inclusive pixels: [0..9] x [0..9] and [0..9] x [5..14] share 50 of 150 pixels


def test_box_iou_counts_pixels_inclusively() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 5, 9, 14], [10, 0, 19, 9], [9, 0, 18, 9]], dtype=np.float32)
    np.testing.assert_allclose(box_iou(boxes[:1], boxes), [1, 50 / 150, 0, 10 / 190])


def test_link_boxes_follows_people_through_the_detection_order() -> None:
    left, right = np.array([0, 0, 9, 9.0]), np.array([100, 0, 109, 9.0])
    # Frame 2 lists the two in the other order, frame 3 misses the right one, frame 5 comes after a hole.
    frames = np.array([1, 1, 2, 2, 3, 5])
    boxes = np.array([left, right, right + 1, left + 1, left + 2, left + 2])
    assert [track.tolist() for track in link_boxes(frames, boxes)] == [[0, 3, 4], [1, 2], [5]]
    shuffled = np.array([5, 3, 0, 4, 2, 1])
    tracks = link_boxes(frames[shuffled], boxes[shuffled])
    assert sorted(shuffled[track].tolist() for track in tracks) == [[0, 3, 4], [1, 2], [5]]
    assert link_boxes(frames[:0], boxes[:0]) == []


def test_link_boxes_maximises_the_sum_of_overlaps() -> None:
    # Shifts along x of 10-pixel boxes. IoUs: a-c 9/11, a-d 8/12, b-c 8/12, b-d 5/15: greedy takes a-c and leaves b
    # to d; the best sum is a-d + b-c = 1.33 > 0.82 + 0.33.
    a, b, c, d = ([x, 0, x + 9, 9] for x in (0, 3, 1, -2))
    tracks = link_boxes(np.array([0, 0, 1, 1]), np.array([a, b, c, d], dtype=float), min_iou=0.3)
    assert [track.tolist() for track in tracks] == [[0, 3], [1, 2]]


def test_boxes_of_skeletons() -> None:
    keypoints, scores = np.zeros((2, 3, 2, 2), dtype=np.float32), np.zeros((2, 3, 2), dtype=np.float32)
    keypoints[0, :2], scores[0, :2] = [[10, 20], [19, 29]], 0.9
    keypoints[1, 1], scores[1, 1] = [[100, 20], [300, 300]], [0.9, 0.1]
    clip = SkeletonClip(DUNK, 1, keypoints, scores, (240, 320))
    found = skeleton_boxes(clip, min_score=0.5)
    assert found.frames.tolist() == [0, 1, 1]
    assert found.persons.tolist() == [0, 0, 1]
    assert found.boxes.tolist() == [[10, 20, 19, 29], [10, 20, 19, 29], [100, 20, 100, 20]]
    assert skeleton_boxes(clip, 0.5, margin=1 / 9).boxes[0].tolist() == pytest.approx([9, 19, 20, 30])


# skeletons


def annotation(name: str, label: int, frames: int = 4, persons: int = 1) -> dict[str, Any]:
    keypoint = np.full((persons, frames, 17, 2), [170, 128], dtype=np.float16)
    return {
        "frame_dir": name, "label": label, "img_shape": (256, 340), "original_shape": (256, 340),
        "total_frames": frames, "keypoint": keypoint, "keypoint_score": np.full(keypoint.shape[:3], 0.5, np.float16),
    }  # fmt: skip


def write(path: Path, *annotations: dict[str, Any], **more: Any) -> Path:
    names = [entry["frame_dir"] for entry in annotations]
    path.write_bytes(pickle.dumps({"split": {"train1": names}, "annotations": list(annotations), **more}))
    return path


def test_public_skeleton_file_is_cut_to_24_classes_and_scaled(tmp_path: Path) -> None:
    # classInd.txt counts from 1 and has Basketball 8, BasketballDunk 9, Diving 26, HammerThrow 36, YoYo 101.
    assert [UCF101_CLASSES.index(n) + 1 for n in ("Basketball", "HammerThrow", "SoccerJuggling")] == [8, 36, 84]
    assert len(set(UCF101_CLASSES)) == 101
    assert set(UCF101_24_CLASSES) < set(UCF101_CLASSES)
    path = write(
        tmp_path / "ucf101_2d.pkl",
        annotation("v_BasketballDunk_g01_c01", 8), annotation("v_YoYo_g01_c01", 100),
        annotation("v_HandStandPushups_g01_c01", 36), annotation("v_Diving_g02_c03", 25, persons=2),
    )  # fmt: skip
    found = read_skeletons(path, {DUNK: 5, DIVING: 3})
    assert found.splits == {"train1": [DUNK, DIVING]}
    assert found.skipped == []
    assert [(clip.name, clip.label) for clip in found.clips.values()] == [(DUNK, 1), (DIVING, 5)]
    clip = found.clips[DIVING]
    assert clip.keypoints.dtype == clip.scores.dtype == np.float32
    assert clip.shape == (240, 320)
    np.testing.assert_allclose(clip.keypoints, np.broadcast_to([160, 120], (2, 4, 17, 2)))  # half of 340 x 256
    assert list(read_skeletons(path, {DIVING: 4}).clips) == [DIVING]


def test_label_decides_when_the_name_has_no_class(tmp_path: Path) -> None:
    assert read_skeletons(write(tmp_path / "a.pkl", annotation("clip7", 8))).clips["clip7"].label == 1
    own = write(tmp_path / "a.pkl", annotation("clip7", 8), classes=list(UCF101_24_CLASSES))
    assert read_skeletons(own).clips["clip7"].label == 8
    cut_down = write(tmp_path / "a.pkl", annotation("v_Diving_g02_c03", 5))
    assert read_skeletons(cut_down).clips[DIVING].label == 5


def test_clip_without_persons_is_skipped_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", annotation("v_Diving_g02_c03", 25, persons=0), annotation(DUNK, 8))
    with pytest.warns(UserWarning, match=f"1 clips without a detected person are skipped: {DIVING}"):
        found = read_skeletons(path)
    assert list(found.clips) == found.splits["train1"] == [DUNK]
    assert found.skipped == [DIVING]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("label", 7, "label 7 is 'Basketball', the name says 'BasketballDunk'"),
        ("label", 101, "label 101; allowed is 0 to 100"),
        ("frame_dir", "v_Dunking_g01_c01", "unknown class 'Dunking'"),
        ("keypoint_score", np.ones((1, 3, 17)), r"keypoint_score \[1, 3, 17\] does not fit"),
        ("keypoint", np.ones((1, 4, 17, 3)), r"expected \[M, T, V, 2\]"),
        ("keypoint", np.full((1, 4, 17, 2), np.nan), "136 values are NaN"),
        ("keypoint", "none", "holds no numbers"),
        ("total_frames", 5, "total_frames 5, keypoint has 4 frames"),
        ("img_shape", None, "holds no numbers"),
    ],
)
def test_bad_clip(tmp_path: Path, key: str, value: Any, message: str) -> None:
    entry = annotation("v_BasketballDunk_g01_c01", 8) | {key: value}
    with pytest.raises(UserError, match=message):
        read_skeletons(write(tmp_path / "a.pkl", entry))


@pytest.mark.parametrize(("count", "fits"), [(2, False), (3, True), (4, True), (5, True), (6, False)])
def test_frame_count_may_differ_by_one_only(tmp_path: Path, count: int, fits: bool) -> None:
    path = write(tmp_path / "a.pkl", annotation("v_BasketballDunk_g01_c01", 8))
    if fits:
        assert list(read_skeletons(path, {DUNK: count}).clips) == [DUNK]
    else:
        with pytest.raises(UserError, match=f"4 frames, the ground truth has {count}"):
            read_skeletons(path, {DUNK: count})


def test_written_skeletons_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).uniform(0, 200, (2, 4, 17, 2)).astype(np.float32)
    clip = SkeletonClip(DUNK, 1, points, np.ones((2, 4, 17), dtype=np.float32), (240, 320))
    path = tmp_path / "out.pkl"
    write_skeletons(path, [clip], {"test1": [DUNK]})
    back = read_skeletons(path)
    np.testing.assert_array_equal(back.clips[DUNK].keypoints, points, strict=True)
    assert back.clips[DUNK].label == 1
    assert back.splits == {"test1": [DUNK]}
    before = path.read_bytes()
    for bad, splits in ((SkeletonClip(DUNK, 1, points, points, (240, 320)), {}), (clip, {"test1": [DIVING]})):
        with pytest.raises(UserError, match=r"does not fit|is not among"):
            write_skeletons(path, [bad], splits)
    monkeypatch.setattr(os, "replace", _full_disk)
    with pytest.raises(UserError, match="cannot be written"):
        write_skeletons(path, [clip])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")
