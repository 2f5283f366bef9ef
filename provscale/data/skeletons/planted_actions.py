"""Data set `planted_actions`: several people in view, one of whom does the labelled action, from real human motion.

A miniature of weakly supervised action localisation that needs no download: motion capture (`motions`) is seen by a
camera, and only the class of the video is known in training. People stand beside each other; the others do what no
class is named after. `bias` ties their motion to the class in training, so that a network can be right for the wrong
person; in validation and test clips it is drawn freely. There is one recording of each
motion: clips of different splits differ in people's size, direction, place, speed, moment and detection noise, not in
who moved.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from provscale.config import DataConfig
from provscale.data.skeletons.clips import SkeletonClip, write_skeletons
from provscale.data.skeletons.motions import load_motion, resample
from provscale.data.skeletons.tracks import skeleton_boxes
from provscale.data.skeletons.tubes import UCF101_RESOLUTION, GroundTruth, Tube
from provscale.data.skeletons.ucf101 import SkeletonOptions, skeleton_splits
from provscale.data.splits import DATA_SETS, DataSplits
from provscale.errors import UserError
from provscale.randomness import numpy_generator

ACTIONS = {"Kick": "kick", "Punch": "punch", "Jump": "jump", "Spin": "spin", "Cartwheel": "cartwheel", "Roll": "roll"}
"""Class -> motion clip."""

DISTRACTORS = ("walk", "run", "dance_a", "dance_b", "getup_facedown", "crawl")
"""Motions of the others; the i-th is the one that `bias` ties to class i."""

CLASSES = tuple(ACTIONS)
FOCAL, CAMERA_HEIGHT = 300.0, 1.0


@dataclass
class PlantedOptions:
    """How clips are made.

    Attributes:
        train, validation, test: number of videos; classes take turns.
        length: frames of a video, at 25 a second.
        people: people in a video, one of whom acts.
        bias: probability that each of the others, in a training video, does the motion tied to the video's class.
        noise: standard deviation of detected keypoints, in pixels.
        missing: probability that a keypoint is not detected.
        seed: of the clips; training draws from the run's own seed.
    """

    train: int = 240
    validation: int = 60
    test: int = 120
    length: int = 40
    people: int = 4
    bias: float = 0.8
    noise: float = 1.0
    missing: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError when a value is out of range."""
        allowed = {
            "train": (self.train >= 1, "at least 1"),
            "validation": (self.validation >= 0, "0 (none) or more"),
            "test": (self.test >= 1, "at least 1"),
            "length": (self.length >= 15, "at least 15, the shortest tube that is evaluated"),
            "people": (1 <= self.people <= 6, "1 to 6"),
            "bias": (0 <= self.bias <= 1, "in [0, 1]"),
            "noise": (self.noise >= 0, "0 or more"),
            "missing": (0 <= self.missing < 1, "in [0, 1)"),
        }
        for name, (good, text) in allowed.items():
            if not good:
                raise UserError(f"data.options.{name}: is {getattr(self, name)}, must be {text}")


def make_clips(options: PlantedOptions, box_margin: float) -> tuple[dict[str, SkeletonClip], GroundTruth]:
    """All videos' skeletons as a detector would give them, and the actors' tubes.

    Args:
        box_margin: share of a person's width and height added on each side of the true keypoints.

    Raises:
        UserError: the package with the motion clips is not installed.
    """
    clips: dict[str, SkeletonClip] = {}
    truth = GroundTruth({}, {}, {}, [], [])
    splits = {
        "train": (1, options.train, truth.train_videos),
        "test": (2, options.test, truth.test_videos),
        "validation": (3, options.validation, truth.validation_videos),
    }
    for split, (group, count, videos) in splits.items():
        for number in range(count):
            label = number % len(CLASSES)
            name = f"{CLASSES[label]}/v_{CLASSES[label]}_g{group:02d}_c{number:04d}"
            clip, actor = make_clip(name, label, options, split == "train", (options.seed, split, number))
            clips[name] = clip
            boxes = skeleton_boxes(actor, 0.0, box_margin).boxes
            # Whole pixels, as annotation files have them.
            truth.tubes[name] = [Tube(name, label, 0, np.rint(np.clip(boxes, 0, 65535)).astype(np.float32))]
            truth.frame_counts[name], truth.resolutions[name] = options.length, UCF101_RESOLUTION
            videos.append(name)
    return clips, truth


def make_clip(
    name: str, label: int, options: PlantedOptions, biased: bool, key: tuple[int | str, ...]
) -> tuple[SkeletonClip, SkeletonClip]:
    """One video: the skeletons as detected, in random order in every frame, and the actor's true ones (M = 1)."""
    generator = numpy_generator("planted actions", *key)
    motions = [ACTIONS[CLASSES[label]]]
    for _ in range(options.people - 1):
        tied = biased and generator.random() < options.bias
        motions.append(DISTRACTORS[label if tied else int(generator.integers(len(DISTRACTORS)))])
    places = generator.permutation(options.people)
    people = [perform(motion, place, options, generator) for motion, place in zip(motions, places, strict=True)]
    true = np.stack([project(points) for points in people]).astype(np.float32)
    seen = true + generator.normal(0, options.noise, true.shape).astype(np.float32)
    scores = generator.uniform(0.5, 1.0, true.shape[:3]).astype(np.float32)
    scores[generator.random(scores.shape) < options.missing] = 0
    seen[scores == 0] = 0
    order = generator.permuted(np.tile(np.arange(options.people), (options.length, 1)), axis=1).T
    columns = np.arange(options.length)
    detected = SkeletonClip(name, label, seen[order, columns], scores[order, columns], UCF101_RESOLUTION)
    actor = SkeletonClip(name, label, true[:1], np.ones_like(scores[:1]), UCF101_RESOLUTION)
    return detected, actor


def perform(motion: str, place: int, options: PlantedOptions, generator: np.random.Generator) -> np.ndarray:
    """A person's keypoints [T, 17, 3] in the camera's axes: x right, y up, z away, in metres; camera at x = z = 0."""
    speed, start, size = generator.uniform(0.8, 1.2), generator.uniform(0, 10), generator.uniform(0.85, 1.15)
    points = size * resample(load_motion(motion), start + speed * np.arange(options.length) / 25)
    angle = generator.uniform(0, 2 * np.pi)
    x = np.cos(angle) * points[..., 0] + np.sin(angle) * points[..., 2]
    z = -np.sin(angle) * points[..., 0] + np.cos(angle) * points[..., 2]
    side = 1.7 * (place - (options.people - 1) / 2) + generator.uniform(-0.2, 0.2)
    away = generator.uniform(6.5, 8.5)
    return np.stack([x + side, points[..., 1], z + away], axis=-1)


def project(points: np.ndarray) -> np.ndarray:
    """Pinhole camera 1 m above the ground, looking straight ahead: [..., 3] in metres -> [..., 2] in pixels."""
    height, width = UCF101_RESOLUTION
    x = width / 2 + FOCAL * points[..., 0] / points[..., 2]
    y = height / 2 - FOCAL * (points[..., 1] - CAMERA_HEIGHT) / points[..., 2]
    return np.stack([x, y], axis=-1)


def write_files(root: Path, clips: dict[str, SkeletonClip], truth: GroundTruth) -> Iterator[Path]:
    """Writes the three files that `ucf101_24` reads, and yields their paths. They know training and test videos only.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        skeletons, tubes, listed = root / "ucf101_2d.pkl", root / "pyannot.pkl", root / "testlist01.txt"
        lists = {"train1": truth.train_videos, "test1": truth.test_videos}
        videos = [*truth.train_videos, *truth.test_videos]
        write_skeletons(skeletons, [clips[video] for video in videos], lists, CLASSES)
        yield skeletons
        with tubes.open("wb") as file:
            pickle.dump({video: annotation(truth, video) for video in videos}, file, protocol=4)
        yield tubes
        listed.write_text("".join(f"{video}\n" for video in truth.test_videos))
        yield listed
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); choose a writable folder") from None


def annotation(truth: GroundTruth, video: str) -> dict[str, object]:
    """A video's entry of pyannot.pkl: boxes are x, y, width, height in uint16."""
    entries = []
    for tube in truth.tubes[video]:
        boxes = tube.boxes.copy()
        boxes[:, 2:] -= boxes[:, :2]
        boxes = boxes.astype(np.uint16)
        entries.append({"label": tube.label, "sf": tube.first_frame, "ef": tube.end_frame, "boxes": boxes})
    return {"annotations": entries, "numf": truth.frame_counts[video], "label": truth.tubes[video][0].label}


@dataclass
class PlantedActionsOptions(SkeletonOptions, PlantedOptions):
    """How clips are made, and what is read from them."""

    frames: int = 16
    persons: int = 6

    def __post_init__(self) -> None:
        SkeletonOptions.__post_init__(self)
        PlantedOptions.__post_init__(self)


@DATA_SETS.register("planted_actions")
def build(config: DataConfig, seed: int, options: PlantedActionsOptions) -> DataSplits:
    """Raises UserError when the package with the motion clips is not installed."""
    clips, truth = make_clips(options, options.box_margin)
    return skeleton_splits(clips, truth, CLASSES, options)
