"""Planted actions and clips: kinematics, camera, slots, elements, segments, views."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from provscale.config import DataConfig
from provscale.data import DataSplits, build_splits
from provscale.data.loader import LoadedItems
from provscale.data.skeletons import motions
from provscale.data.skeletons.clips import SkeletonClip
from provscale.data.skeletons.items import COCO_KEYPOINTS, MIRRORED, SampleFrames, SkeletonItems, person_slots, segments
from provscale.data.skeletons.planted_actions import CLASSES, PlantedOptions, make_clips, project

pytest.importorskip("pybullet_data", reason="planted actions need the motion clips of pybullet")
SMALL = {"train": 12, "validation": 12, "test": 12, "length": 20, "frames": 8, "persons": 5}


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return build_splits(DataConfig(name="planted_actions", options=SMALL), 0)


# motion


def test_forward_kinematics_equals_pybullets_own() -> None:
    """The package loads the same humanoid and computes its joints itself: all positions within a micrometre."""
    bullet = pytest.importorskip("pybullet")
    data = pytest.importorskip("pybullet_data")
    client = bullet.connect(bullet.DIRECT)
    try:
        bullet.setAdditionalSearchPath(data.getDataPath(), physicsClientId=client)
        body = bullet.loadURDF("humanoid/humanoid.urdf", globalScaling=0.25, useFixedBase=True,
                               flags=bullet.URDF_MAINTAIN_LINK_ORDER, physicsClientId=client)  # fmt: skip
        count = bullet.getNumJoints(body, client)
        joints = {bullet.getJointInfo(body, index, client)[12].decode(): index for index in range(count)}
        frames = np.array(json.loads((motions.motion_folder() / "humanoid3d_kick.txt").read_text())["Frames"])
        found = motions.coco_keypoints(frames)

        def wxyz_to_xyzw(quaternion: np.ndarray) -> list[float]:
            return [*quaternion[1:], quaternion[0]]

        for row in (0, 10, 30):
            frame = frames[row]
            bullet.resetBasePositionAndOrientation(body, frame[1:4], wxyz_to_xyzw(frame[4:8]), client)
            for name, joint in motions.JOINTS.items():
                values = frame[joint.first : joint.first + joint.size]
                if joint.size:
                    state = wxyz_to_xyzw(values) if joint.size == 4 else values
                    bullet.resetJointStateMultiDof(body, joints[name], state, physicsClientId=client)
            for name in set(motions.JOINTS) & set(COCO_KEYPOINTS):
                state = bullet.getLinkState(body, joints[name], computeForwardKinematics=True, physicsClientId=client)
                np.testing.assert_allclose(found[row, COCO_KEYPOINTS.index(name)], state[4], atol=1e-6)
    finally:
        bullet.disconnect(client)


def test_resampling_repeats_or_turns_round() -> None:
    points = np.arange(3.0)[:, None, None] * np.ones((3, 17, 3))
    times = np.array([0.5, 2.5, 3.0, 4.5])
    for cyclic, expected in ((True, [0.5, 0.5, 1.0, 0.5]), (False, [0.5, 1.5, 1.0, 0.5])):
        motion = motions.Motion(np.arange(3.0), points, cyclic)
        np.testing.assert_allclose(motions.resample(motion, times)[:, 0, 0], expected)


def test_camera_is_a_pinhole() -> None:
    """A person 1.5 m tall, 10 m away, 1 m to the right: 300 x 1.5 / 10 = 45 pixels tall, 30 right of the middle."""
    head, feet = project(np.array([[1.0, 1.5, 10.0], [1.0, 0.0, 10.0]]))
    assert head.tolist() == [190.0, 105.0]
    assert feet[1] - head[1] == 45


# items


def test_slots_hold_one_person_each_although_detections_come_in_any_order() -> None:
    clips, _ = make_clips(PlantedOptions(train=6, test=1, noise=0, missing=0), 0.1)
    for clip in clips.values():
        assert np.abs(np.diff(clip.keypoints[..., 0].mean(axis=2), axis=1)).max() > 40, "control: order does change"
        items = SkeletonItems([clip], persons=5, min_score=0.1)
        points = items[0].inputs.unflatten(2, (17, 3))
        assert (points[4] == 0).all()
        steps = points[:4, ..., 0].mean(dim=2).diff(dim=1).abs() * 160
        assert steps.max() < 25, "nobody jumps 25 pixels in a 25th of a second"


def test_people_with_more_evidence_choose_slots_first() -> None:
    """Two people, one slot: it goes to the one whose confidences add up to more, wherever the detector lists them."""
    keypoints = np.random.default_rng(0).uniform(10, 60, (2, 6, 17, 2)).astype(np.float32)
    keypoints[1] += 150
    for strong in (0, 1):
        scores = np.full((2, 6, 17), 0.5, np.float32)
        scores[strong] = 0.9
        clip = SkeletonClip("Kick/v_Kick_g01_c01", 0, keypoints, scores, (240, 320))
        assert (person_slots(clip, 1, 0.1, min_iou=0.1) == strong).all()


def test_elements_are_normalised_and_missing_ones_are_zero() -> None:
    """In 320 x 240: x = 240 is 240 / 160 - 1 = 0.5, y = 30 is 30 / 120 - 1 = -0.75."""
    keypoints, scores = np.zeros((1, 2, 17, 2), np.float32), np.zeros((1, 2, 17), np.float32)
    keypoints[0, 1, 3], scores[0, 1, 3] = (240, 30), 0.6
    keypoints[0, 1, 4], scores[0, 1, 4] = (1, 2), 0.05
    item = SkeletonItems([SkeletonClip("Kick/v_Kick_g01_c01", 0, keypoints, scores, (240, 320))], 2, 0.1)[0]
    points = item.inputs.unflatten(2, (17, 3))
    torch.testing.assert_close(points[0, 1, 3], torch.tensor([0.5, -0.75, 0.6]))
    assert item.inputs.count_nonzero() == 3
    assert item.valid_mask is not None
    assert item.valid_mask.sum() == 3
    assert torch.equal(item.inputs != 0, item.valid_mask.bool())


@pytest.mark.parametrize(("frames", "count"), [(40, 16), (16, 16), (5, 16), (100, 32), (1, 3)])
def test_segments_cover_the_clip(frames: int, count: int) -> None:
    starts, ends = segments(frames, count)
    assert {frame for first, end in zip(starts, ends, strict=True) for frame in range(first, end)} == set(range(frames))
    assert (ends > starts).all()
    assert max(ends - starts) - min(ends - starts) <= 1


@pytest.mark.parametrize("length", [15, 20, 47])
def test_views_show_every_skeleton_once(length: int) -> None:
    built = build_splits(DataConfig(name="planted_actions", options={**SMALL, "length": length, "frames": 16}), 0)
    views: Any = built.test
    seen: dict[str, list[int]] = {}
    for index in range(len(views)):
        view = views.view(index)
        assert views[index].inputs.shape == (5, 16, 51)
        seen.setdefault(view.video, []).extend(view.frames[view.fresh].tolist())
    assert len(seen) == SMALL["test"]
    assert all(sorted(frames) == list(range(length)) for frames in seen.values())


def test_mirror_swaps_left_and_right() -> None:
    assert [COCO_KEYPOINTS[index] for index in MIRRORED][:3] == ["nose", "right_eye", "left_eye"]
    transform = SampleFrames(4, random=True)
    elements = torch.rand(2, 4, 51)
    points, mirrored = elements.unflatten(2, (17, 3)), transform.mirror(elements, -1.0).unflatten(2, (17, 3))
    torch.testing.assert_close(mirrored[:, :, 5], points[:, :, 6] * torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(transform.mirror(transform.mirror(elements, -1.0), -1.0), elements)


def test_training_items_are_drawn_by_seed_epoch_and_index(splits: DataSplits) -> None:
    items = LoadedItems(splits.train, lambda item: item, splits.train_transform, len(CLASSES), 0)
    first, again, later = items[0, 3][1], items[0, 3][1], items[1, 3][1]
    assert first.inputs.shape == (5, 8, 51)
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, later.inputs)
    assert first.valid_mask is not None
    assert torch.equal(first.inputs != 0, first.valid_mask.bool())
