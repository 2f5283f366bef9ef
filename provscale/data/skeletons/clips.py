"""Skeleton sequences in the pickle format of MMAction2 and PYSKL, for UCF101-24.

Format: {'split': {name: [clip names]}, 'annotations': [{'frame_dir', 'total_frames', 'img_shape': (h, w),
'original_shape', 'label', 'keypoint': [M, T, V, 2], 'keypoint_score': [M, T, V]}]}.
M persons, T frames, V keypoints. The order of the M persons is that of the detector in each frame: not a track.
The public UCF101 file has all 101 classes and coordinates in a 340 x 256 frame; the ground truth has 24 and 320 x 240.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from provscale.data.skeletons.pickles import load_pickle
from provscale.data.skeletons.tubes import UCF101_24_CLASSES, UCF101_RESOLUTION, class_of_video
from provscale.errors import UserError
from provscale.files import written_aside

# fmt: off
UCF101_CLASSES = (
    "ApplyEyeMakeup", "ApplyLipstick", "Archery", "BabyCrawling", "BalanceBeam", "BandMarching", "BaseballPitch",
    "Basketball", "BasketballDunk", "BenchPress", "Biking", "Billiards", "BlowDryHair", "BlowingCandles",
    "BodyWeightSquats", "Bowling", "BoxingPunchingBag", "BoxingSpeedBag", "BreastStroke", "BrushingTeeth",
    "CleanAndJerk", "CliffDiving", "CricketBowling", "CricketShot", "CuttingInKitchen", "Diving", "Drumming", "Fencing",
    "FieldHockeyPenalty", "FloorGymnastics", "FrisbeeCatch", "FrontCrawl", "GolfSwing", "Haircut", "Hammering",
    "HammerThrow", "HandstandPushups", "HandstandWalking", "HeadMassage", "HighJump", "HorseRace", "HorseRiding",
    "HulaHoop", "IceDancing", "JavelinThrow", "JugglingBalls", "JumpingJack", "JumpRope", "Kayaking", "Knitting",
    "LongJump", "Lunges", "MilitaryParade", "Mixing", "MoppingFloor", "Nunchucks", "ParallelBars", "PizzaTossing",
    "PlayingCello", "PlayingDaf", "PlayingDhol", "PlayingFlute", "PlayingGuitar", "PlayingPiano", "PlayingSitar",
    "PlayingTabla", "PlayingViolin", "PoleVault", "PommelHorse", "PullUps", "Punch", "PushUps", "Rafting",
    "RockClimbingIndoor", "RopeClimbing", "Rowing", "SalsaSpin", "ShavingBeard", "Shotput", "SkateBoarding", "Skiing",
    "Skijet", "SkyDiving", "SoccerJuggling", "SoccerPenalty", "StillRings", "SumoWrestling", "Surfing", "Swing",
    "TableTennisShot", "TaiChi", "TennisSwing", "ThrowDiscus", "TrampolineJumping", "Typing", "UnevenBars",
    "VolleyballSpiking", "WalkingWithDog", "WallPushups", "WritingOnBoard", "YoYo",
)
# fmt: on
"""All 101 classes in the order of UCF101's classInd.txt, which numbers them from 1; labels of the pickles from 0."""


@dataclass(eq=False)
class SkeletonClip:
    """The skeletons of one video: M persons, T frames, V keypoints.

    Attributes:
        name: as in the ground truth, e.g. "Basketball/v_Basketball_g01_c01".
        label: position in the class names, `UCF101_24_CLASSES` unless told otherwise.
        keypoints: float32 [M, T, V, 2], x and y in pixels of a frame of `shape`; 0 where missing.
        scores: float32 [M, T, V], confidence; 0 where missing.
        shape: (height, width) of the frame in pixels.
    """

    name: str
    label: int
    keypoints: np.ndarray
    scores: np.ndarray
    shape: tuple[int, int]


@dataclass
class SkeletonSet:
    """Clips by name, and the names of each split ("train1", ...); `skipped`: clips in which nobody was detected."""

    clips: dict[str, SkeletonClip]
    splits: dict[str, list[str]]
    skipped: list[str] = field(default_factory=list)


def read_skeletons(
    path: str | Path,
    frame_counts: Mapping[str, int] | None = None,
    resolution: tuple[int, int] = UCF101_RESOLUTION,
    classes: Sequence[str] = UCF101_24_CLASSES,
) -> SkeletonSet:
    """Reads the clips of `classes`; those of other classes, such as the other 77 of UCF101, are left out.

    The class comes from the clip's name ("v_Basketball_g01_c01") and must agree with its label. For names without a
    class the label decides: it counts through the file's own 'classes' where there is such a key (`write_skeletons`
    writes it), else through the 101 classes of UCF101. A clip without persons is skipped with a warning.

    Args:
        path: the pickle file.
        frame_counts: video -> number of frames in the ground truth; a clip may differ by one, as video decoders do.
            Clips that it does not contain are left out. None: no check.
        resolution: (height, width) to which coordinates are scaled from the file's `img_shape`.
        classes: names of the labels; other than the 24 for data of one's own in this format.

    Raises:
        UserError: another format, an unknown class, a label that contradicts the name, NaN, arrays that do not fit
            each other, or a frame count that differs by more than one.
    """
    data = load_pickle(path)
    if not isinstance(data, Mapping) or not {"split", "annotations"} <= set(data):
        raise UserError(f"{path}: no 'split' and 'annotations'; expected a skeleton pickle of MMAction2 or PYSKL")
    if not isinstance(data["split"], Mapping) or not isinstance(data["annotations"], Sequence):
        raise UserError(f"{path}: 'split' must be {{name: [clips]}} and 'annotations' a list; see MMAction2's format")
    numbering = tuple(data.get("classes", UCF101_CLASSES))
    names: dict[str, str] = {}
    clips: dict[str, SkeletonClip] = {}
    skipped: list[str] = []
    for number, annotation in enumerate(data["annotations"]):
        where = f"{path}, annotation {number}"
        if not isinstance(annotation, Mapping) or "frame_dir" not in annotation:
            raise UserError(f"{where}: no 'frame_dir'; expected a skeleton pickle of MMAction2 or PYSKL")
        given = str(annotation["frame_dir"])
        where = f"{path}, clip '{given}'"
        action = _class_of(annotation, given, numbering, classes, where)
        if action not in classes:
            continue
        name = f"{action}/{given}" if class_of_video(given) and "/" not in given else given
        if frame_counts is not None and name not in frame_counts:
            continue
        if name in clips:
            raise UserError(f"{where}: the clip occurs twice; keep one annotation a clip")
        keypoints, scores, shape = _arrays(annotation, where)
        frames = keypoints.shape[1]
        if frame_counts is not None and abs(frames - frame_counts[name]) > 1:
            raise UserError(
                f"{where}: {frames} frames, the ground truth has {frame_counts[name]}; a difference of one is "
                "tolerated: extract this clip again from the same video"
            )
        if not np.any(scores > 0):
            skipped.append(name)
            continue
        names[given] = name
        keypoints *= np.array([resolution[1] / shape[1], resolution[0] / shape[0]], dtype=np.float32)
        clips[name] = SkeletonClip(name, classes.index(action), keypoints, scores, resolution)
    if not clips:
        raise UserError(
            f"{path}: no usable clip of the {len(classes)} classes among {len(data['annotations'])}; check the file"
        )
    if skipped:
        shown = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        warnings.warn(f"{path}: {len(skipped)} clips without a detected person are skipped: {shown}", stacklevel=2)
    splits = {str(key): [names[str(n)] for n in values if str(n) in names] for key, values in data["split"].items()}
    return SkeletonSet(clips, splits, skipped)


def write_skeletons(
    path: str | Path,
    clips: Iterable[SkeletonClip],
    splits: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[str] = UCF101_24_CLASSES,
) -> None:
    """Writes clips in the format above, plus 'classes', the names that the labels count through.

    The file appears complete or not at all: it is written aside, synchronised and renamed. numpy 2 names its modules
    `numpy._core`, so readers need numpy 1.26 or later.

    Args:
        path: the pickle file; an existing one is replaced.
        clips: coordinates in pixels of each clip's own `shape`.
        splits: split name -> clip names; default: none.
        classes: names that the clips' labels count through.

    Raises:
        UserError: a clip whose arrays do not fit each other, a split that names a clip not written, or a folder that
            cannot be written to.
    """
    annotations: list[dict[str, Any]] = []
    for clip in clips:
        annotation = {
            "frame_dir": clip.name,
            "label": int(clip.label),
            "img_shape": tuple(int(side) for side in clip.shape),
            "original_shape": tuple(int(side) for side in clip.shape),
            "total_frames": int(clip.keypoints.shape[1]) if clip.keypoints.ndim == 4 else 0,
            "keypoint": clip.keypoints,
            "keypoint_score": clip.scores,
        }
        keypoints, scores, _ = _arrays(annotation, f"clip '{clip.name}'")
        annotations.append(annotation | {"keypoint": keypoints, "keypoint_score": scores})
    written = {annotation["frame_dir"] for annotation in annotations}
    for split, names in (splits or {}).items():
        if unknown := [name for name in names if name not in written]:
            raise UserError(f"split '{split}': clip '{unknown[0]}' is not among the {len(written)} clips to write")
    content = {
        "split": {key: list(names) for key, names in (splits or {}).items()},
        "annotations": annotations,
        "classes": list(classes),
    }
    target = Path(path)
    try:
        with written_aside(target) as aside, aside.open("wb") as file:
            pickle.dump(content, file, protocol=4)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a writable folder") from None


def _class_of(
    annotation: Mapping[str, Any], given: str, numbering: Sequence[str], classes: Sequence[str], where: str
) -> str:
    """A class name: one of the 101 of UCF101 or of `classes`."""
    label = annotation.get("label")
    by_label = None
    if label is not None:
        if not isinstance(label, (int, np.integer)) or not 0 <= label < len(numbering):
            raise UserError(f"{where}: label {label!r}; allowed is 0 to {len(numbering) - 1}")
        by_label = numbering[int(label)]
    named = class_of_video(given)
    if named is None:
        if by_label is None:
            raise UserError(f"{where}: neither a label nor a name like v_Basketball_g01_c01; add one of the two")
        return by_label
    # UCF101 itself spells HandstandPushups both ways.
    known = {name.lower(): name for name in (*UCF101_CLASSES, *classes)}
    if named.lower() not in known:
        raise UserError(f"{where}: unknown class '{named}'; allowed are the 101 classes of UCF101")
    action = known[named.lower()]
    # Files cut down to the wanted classes number through those.
    alternatives = {by_label, classes[int(label)] if label is not None and label < len(classes) else None}
    if by_label is not None and action not in alternatives:
        raise UserError(f"{where}: label {label} is '{by_label}', the name says '{action}'; correct one of the two")
    return action


def _arrays(annotation: Mapping[str, Any], where: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Keypoints float32 [M, T, V, 2] (a copy), scores float32 [M, T, V] and (height, width), checked."""
    missing = [key for key in ("keypoint", "keypoint_score", "img_shape", "total_frames") if key not in annotation]
    if missing:
        raise UserError(f"{where}: no '{missing[0]}'; expected a skeleton pickle of MMAction2 or PYSKL")
    try:
        keypoints = np.array(annotation["keypoint"], dtype=np.float32)
        scores = np.array(annotation["keypoint_score"], dtype=np.float32)
        height, width = (int(side) for side in annotation["img_shape"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: 'keypoint', 'keypoint_score' or 'img_shape' holds no numbers ({error})") from None
    if keypoints.ndim != 4 or keypoints.shape[3] != 2 or height < 1 or width < 1:
        raise UserError(
            f"{where}: keypoint {list(keypoints.shape)} in a frame of {width} x {height}; expected [M, T, V, 2]"
        )
    if scores.shape != keypoints.shape[:3]:
        raise UserError(
            f"{where}: keypoint_score {list(scores.shape)} does not fit keypoint {list(keypoints.shape)}; expected "
            f"{list(keypoints.shape[:3])}"
        )
    if annotation["total_frames"] != keypoints.shape[1]:
        raise UserError(f"{where}: total_frames {annotation['total_frames']}, keypoint has {keypoints.shape[1]} frames")
    bad = int((~np.isfinite(keypoints)).sum() + (~np.isfinite(scores)).sum())
    if bad:
        raise UserError(f"{where}: {bad} values are NaN or infinite; write missing keypoints as 0 with score 0")
    return keypoints, scores, (height, width)
