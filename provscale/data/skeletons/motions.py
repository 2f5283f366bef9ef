"""Real human motion from the package pybullet: DeepMimic's motion capture clips, as COCO keypoints in space.

The clips are read where the package is installed and are not part of this project. A clip's frame holds 44 numbers:
duration in seconds, root position [3], then rotations relative to the parent: quaternions (w, x, y, z), or one angle
about z for knees and elbows. Axes: x forward, y up, z to the person's right; metres.
Source: Peng et al., "DeepMimic", ACM Transactions on Graphics 2018; limbs from the package's humanoid.urdf.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from provscale.data.skeletons.items import COCO_KEYPOINTS
from provscale.errors import UserError

URDF_SCALE = 0.25
"""The package loads its humanoid at a quarter of the lengths in the file, which makes it 1.6 m tall."""


class Joint(NamedTuple):
    """A joint: parent's name, place in the parent's axes (units of the URDF), position and number of its values."""

    parent: str
    offset: tuple[float, float, float]
    first: int
    size: int


JOINTS = {
    "chest": Joint("root", (0, 0.944604, 0), 8, 4),
    "neck": Joint("chest", (0, 0.895576, 0), 12, 4),
    "right_hip": Joint("root", (0, 0, 0.339548), 16, 4),
    "right_knee": Joint("right_hip", (0, -1.686184, 0), 20, 1),
    "right_ankle": Joint("right_knee", (0, -1.63948, 0), 21, 4),
    "right_shoulder": Joint("chest", (-0.0962, 0.974, 0.73244), 25, 4),
    "right_elbow": Joint("right_shoulder", (0, -1.099152, 0), 29, 1),
    "right_wrist": Joint("right_elbow", (0, -1.035788, 0), 0, 0),
    "left_hip": Joint("root", (0, 0, -0.339548), 30, 4),
    "left_knee": Joint("left_hip", (0, -1.686184, 0), 34, 1),
    "left_ankle": Joint("left_knee", (0, -1.63948, 0), 35, 4),
    "left_shoulder": Joint("chest", (-0.0962, 0.974, -0.73244), 39, 4),
    "left_elbow": Joint("left_shoulder", (0, -1.099152, 0), 43, 1),
    "left_wrist": Joint("left_elbow", (0, -1.035788, 0), 0, 0),
}

HEAD_CENTRE, HEAD_RADIUS = (0.0, 0.7, 0.0), 0.41
FACE = {
    "nose": (1.0, 0.0, 0.0),
    "left_eye": (0.87, 0.35, -0.35),
    "right_eye": (0.87, 0.35, 0.35),
    "left_ear": (0.0, 0.0, -1.0),
    "right_ear": (0.0, 0.0, 1.0),
}
"""Where the humanoid's head, a sphere, has its face [our choice], in radii from its centre."""


class Motion(NamedTuple):
    """A clip: times float64 [T] in seconds, keypoints float64 [T, 17, 3] in metres (COCO order), and whether its end
    joins its beginning."""

    times: np.ndarray
    keypoints: np.ndarray
    cyclic: bool


def motion_folder() -> Path:
    """The folder of the package's clips. Raises UserError when the package is not installed."""
    found = importlib.util.find_spec("pybullet_data")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "data.name: planted_actions takes its motion from the package pybullet, which is not installed; "
            "run: pip install 'provscale[skeleton-demo]'"
        )
    return Path(found.submodule_search_locations[0]) / "data" / "motions"


@cache
def load_motion(name: str) -> Motion:
    """A clip by name, e.g. "kick", with its drift over the ground taken out: people stay where they are placed.

    Raises:
        UserError: the package is not installed, or has no such clip.
    """
    path = motion_folder() / f"humanoid3d_{name}.txt"
    try:
        content = json.loads(path.read_text())
        frames = np.array(content["Frames"], dtype=np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as a motion clip ({error}); install pybullet==3.2.7") from None
    times = np.concatenate([[0.0], np.cumsum(frames[:-1, 0])])
    keypoints = coco_keypoints(frames)
    hips = keypoints[:, [11, 12]].mean(axis=1)
    drift = np.linspace(0, 1, len(frames))[:, None] * (hips[-1] - hips[0]) + hips[0]
    drift[:, 1] = 0
    return Motion(times, keypoints - drift[:, None], content.get("Loop") == "wrap")


def coco_keypoints(frames: np.ndarray) -> np.ndarray:
    """Forward kinematics: frames [T, 44] -> the 17 COCO keypoints [T, 17, 3] in metres."""

    places = {"root": frames[:, 1:4]}
    turns = {"root": Rotation.from_quat(frames[:, 4:8], scalar_first=True)}
    for name, joint in JOINTS.items():
        places[name] = places[joint.parent] + turns[joint.parent].apply(URDF_SCALE * np.array(joint.offset))
        turns[name] = turns[joint.parent]
        values = frames[:, joint.first : joint.first + joint.size]
        if joint.size == 4:
            turns[name] = turns[name] * Rotation.from_quat(values, scalar_first=True)
        elif joint.size == 1:
            turns[name] = turns[name] * Rotation.from_euler("z", values)
    for name, direction in FACE.items():
        offset = np.array(HEAD_CENTRE) + HEAD_RADIUS * np.array(direction)
        places[name] = places["neck"] + turns["neck"].apply(URDF_SCALE * offset)
    return np.stack([places[name] for name in COCO_KEYPOINTS], axis=1)


def resample(motion: Motion, times: np.ndarray) -> np.ndarray:
    """Keypoints [N, 17, 3] at the given times [N] in seconds: cyclic clips repeat, others run forth and back."""
    length = motion.times[-1]
    phase = np.mod(times, length) if motion.cyclic else length - np.abs(np.mod(times, 2 * length) - length)
    after = np.clip(np.searchsorted(motion.times, phase, side="right"), 1, len(motion.times) - 1)
    share = (phase - motion.times[after - 1]) / (motion.times[after] - motion.times[after - 1])
    return motion.keypoints[after - 1] + share[:, None, None] * (motion.keypoints[after] - motion.keypoints[after - 1])
