"""Data set `ucf101_24`: skeletons of UCF101-24 with a class for each video, evaluated by its person tubes.

    root/ucf101_2d.pkl      skeletons, format of MMAction2 and PYSKL
    root/pyannot.pkl        person tubes of the 24 classes, with root/testlist01.txt; or UCF101v2-GT.pkl

Own data in the same formats is read, too: name its classes in `data.options.classes`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from provscale.config import DataConfig
from provscale.data.skeletons.augment import Augmentation
from provscale.data.skeletons.clips import SkeletonClip, read_skeletons
from provscale.data.skeletons.items import COCO_KEYPOINTS, MIRRORED, SampleFrames, SkeletonItems, SkeletonViews
from provscale.data.skeletons.tubes import UCF101_24_CLASSES, GroundTruth, read_pyannot, read_ucf101v2
from provscale.data.splits import DATA_SETS, DataSplits, OnDemand
from provscale.errors import UserError

SKELETON_SOURCE = "https://download.openmmlab.com/mmaction/v1.0/skeleton/data/ucf101_2d.pkl"
TUBE_SOURCE = "https://github.com/gurkirt/corrected-UCF101-Annots"


@dataclass
class SkeletonOptions:
    """What every skeleton data set lets choose in `data.options`; none of it is published, so all are our choices.

    Attributes:
        frames: F, frames of an item, spread over the clip.
        persons: P, person slots; further persons are left out.
        min_score: confidence above which a keypoint counts, in inputs and boxes.
        box_margin: share of a skeleton's width and height added on each side to make it a person's box: keypoints end
            at eyes and ankles.
        flip: mirror half of the training clips.
        scale, shift, rotation, crop, drop: further augmentation of training clips, see `Augmentation`; 0 = none.
    """

    frames: int = 32
    persons: int = 10
    min_score: float = 0.1
    box_margin: float = 0.1
    flip: bool = True
    scale: float = 0.0
    shift: float = 0.0
    rotation: float = 0.0
    crop: float = 0.0
    drop: float = 0.0

    def __post_init__(self) -> None:
        """Raises UserError when a value is out of range."""
        allowed = {
            "frames": (self.frames >= 1, "at least 1"),
            "persons": (self.persons >= 1, "at least 1"),
            "min_score": (0 <= self.min_score < 1, "in [0, 1)"),
            "box_margin": (0 <= self.box_margin <= 1, "in [0, 1]"),
        }
        for name, (good, text) in allowed.items():
            if not good:
                raise UserError(f"data.options.{name}: is {getattr(self, name)}, must be {text}")
        self.augmentation()

    def augmentation(self) -> Augmentation | None:
        """What changes training clips beside mirroring; None = nothing. Raises UserError: a value out of range."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(Augmentation)}
        augmentation = Augmentation(**values)
        return augmentation if any(values.values()) else None


@dataclass
class UCF101Options(SkeletonOptions):
    """The files of UCF101-24, or of one's own data in the same formats.

    Attributes:
        annotations: skeleton pickle in `data.root`.
        ground_truth: person tubes in `data.root`; with "v2" in its name it is read as UCF101v2-GT.pkl, otherwise as
            pyannot.pkl.
        test_list: names of the test videos in `data.root`, which pyannot.pkl needs.
        classes: class names, for data of one's own.
        tracks: folder in `data.root` with person tracks (see `person_tracks`), whose boxes are scored by the skeletons
            inside them; null = boxes are the extents of skeletons.
    """

    annotations: str = "ucf101_2d.pkl"
    ground_truth: str = "pyannot.pkl"
    test_list: str = "testlist01.txt"
    classes: tuple[str, ...] = UCF101_24_CLASSES
    tracks: str | None = None


def group_of_video(name: str) -> str:
    """The recording that a video was cut from, v_CLASS_gNN: its clips show the same people and place. Names of another
    form stand for themselves."""
    found = re.search(r"v_[A-Za-z]+_g\d+", name)
    return found.group() if found else name


def skeleton_splits(
    clips: dict[str, SkeletonClip],
    truth: GroundTruth,
    classes: Sequence[str],
    options: SkeletonOptions,
    tracks: Path | None = None,
) -> DataSplits:
    """The splits of a skeleton data set: training, validation and test videos of `truth` that have a clip.

    An evaluated video without a clip stays in the ground truth: its tubes count as missed.

    Raises:
        UserError: clips with different keypoints; when a split is used, that it has no clip.
    """

    def items(names: Sequence[str], split: str) -> SkeletonItems:
        found = [clips[name] for name in names if name in clips]
        if not found:
            raise UserError(
                f"data.root: no skeletons of any {split} video; skeletons and tubes must name the same videos"
            )
        return SkeletonItems(found, options.persons, options.min_score)

    def views(names: Sequence[str], split: str) -> SkeletonViews:
        own = replace(truth, test_videos=list(names))
        return SkeletonViews(items(names, split), options.frames, own, options.box_margin, tracks)

    train = [name for name in truth.train_videos if name in clips]
    counts = {clip.keypoints.shape[2] for clip in clips.values()}
    if len(counts) > 1:
        raise UserError(f"data.root: clips have {sorted(counts)} keypoints; extract all with one pose estimator")
    if options.flip and counts != {len(COCO_KEYPOINTS)}:
        raise UserError(
            f"data.options.flip: is true, but clips have {counts.pop()} keypoints and left and right are known for the "
            f"{len(COCO_KEYPOINTS)} of COCO only; set it to false"
        )
    return DataSplits(
        train=OnDemand(lambda: items(train, "training")),
        validation=views(truth.validation_videos, "validation") if truth.validation_videos else None,
        test=views(truth.test_videos, "test"),
        train_groups=[group_of_video(name) for name in train],
        evaluated_train=lambda positions: views([train[position] for position in positions], "training"),
        num_classes=len(classes),
        class_names=tuple(classes),
        train_transform=SampleFrames(
            options.frames, True, MIRRORED if options.flip else None, augmentation=options.augmentation()
        ),
        evaluation_transform=SampleFrames(options.frames, random=False),
        metrics=("video_ap", "group_accuracy"),
        best="video_ap@0.5",
    )


@DATA_SETS.register("ucf101_24")
def build(config: DataConfig, seed: int, options: UCF101Options) -> DataSplits:
    """Raises UserError: a file that is missing or that cannot be used."""
    names = {key: getattr(options, key) for key in ("annotations", "ground_truth", "test_list")}
    classes = options.classes
    if config.root is None:
        raise UserError("data.root: is not set; ucf101_24 needs the folder of its skeletons and tubes")
    root, second = Path(config.root), "v2" in names["ground_truth"].lower()
    needed = {"annotations": SKELETON_SOURCE, "ground_truth": TUBE_SOURCE}
    for key, source in needed.items() if second else {**needed, "test_list": TUBE_SOURCE}.items():
        if not (root / names[key]).is_file():
            raise UserError(
                f"data.root: {root / names[key]} does not exist; download it from {source}, or name your file in "
                f"data.options.{key}"
            )
    tubes = root / names["ground_truth"]
    truth = (
        read_ucf101v2(tubes, classes=classes)
        if second
        else read_pyannot(tubes, root / names["test_list"], classes=classes)
    )
    # All videos of UCF101 have one resolution, and coordinates are normalised by it.
    found = read_skeletons(root / names["annotations"], truth.frame_counts, classes=classes)
    tracks = None if options.tracks is None else root / options.tracks
    if tracks is not None and not tracks.is_dir():
        raise UserError(f"data.options.tracks: {tracks} is no folder; it needs one folder per video with its tracks")
    return skeleton_splits(found.clips, truth, classes, options, tracks)
