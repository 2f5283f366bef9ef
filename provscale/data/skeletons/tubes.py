"""UCF101-24 ground truth: person tubes, from either of the two files in use, as one type.

N is the number of frames of a tube. Frames count from 0 here; boxes are (x1, y1, x2, y2) in pixels of the video frame
(320 x 240 in UCF101).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from provscale.data.skeletons.pickles import load_pickle
from provscale.errors import UserError
from provscale.registry import nearest

# fmt: off
UCF101_24_CLASSES = (
    "Basketball", "BasketballDunk", "Biking", "CliffDiving", "CricketBowling", "Diving", "Fencing", "FloorGymnastics",
    "GolfSwing", "HorseRiding", "IceDancing", "LongJump", "PoleVault", "RopeClimbing", "SalsaSpin", "SkateBoarding",
    "Skiing", "Skijet", "SoccerJuggling", "Surfing", "TennisSwing", "TrampolineJumping", "VolleyballSpiking",
    "WalkingWithDog",
)
# fmt: on
"""The 24 classes with person boxes; a label is a position in this tuple."""

UCF101_RESOLUTION = (240, 320)
"""Height and width of a UCF101 frame, in pixels."""

_VIDEO_NAME = re.compile(r"(?:(?P<folder>\w+)/)?v_(?P<name>[A-Za-z]+)_g\d+_c\d+")


@dataclass(eq=False)
class Tube:
    """The boxes of one person over consecutive frames.

    Attributes:
        video: as in the ground truth, e.g. "Basketball/v_Basketball_g01_c01".
        label: int in [0, 24), position in `UCF101_24_CLASSES`.
        first_frame: 0-based.
        boxes: float32 [N, 4] xyxy in pixels; row i belongs to frame `first_frame + i`.
        score: of `label`, for a detection; None in ground truth.
    """

    video: str
    label: int
    first_frame: int
    boxes: np.ndarray
    score: float | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def end_frame(self) -> int:
        """The frame after the last one."""
        return self.first_frame + len(self.boxes)


@dataclass
class GroundTruth:
    """Annotated videos.

    Attributes:
        tubes: video -> its tubes.
        frame_counts: video -> number of frames.
        resolutions: video -> (height, width) in pixels.
        train_videos, test_videos, validation_videos: the split's videos, in file order; each is a key of `tubes`. The
            files of UCF101-24 know no validation videos.
    """

    tubes: dict[str, list[Tube]]
    frame_counts: dict[str, int]
    resolutions: dict[str, tuple[int, int]]
    train_videos: list[str]
    test_videos: list[str]
    validation_videos: list[str] = field(default_factory=list)


def class_of_video(name: str) -> str | None:
    """The class in "Class/v_Class_g01_c01" or "v_Class_g01_c01"; None for a name of another form."""
    match = _VIDEO_NAME.fullmatch(name)
    return match["folder"] or match["name"] if match else None


def label_of_class(name: str, where: str, classes: Sequence[str] = UCF101_24_CLASSES) -> int:
    """The label of a class name; UserError, naming `where`, when it is none of `classes`."""
    if name not in classes:
        hint = nearest(name, list(classes))
        allowed = "the 24 classes of UCF101-24" if tuple(classes) == UCF101_24_CLASSES else ", ".join(classes)
        raise UserError(f"{where}: unknown class '{name}'{hint} (allowed: {allowed})")
    return classes.index(name)


def read_testlist(path: str | Path, classes: Sequence[str] = UCF101_24_CLASSES) -> list[str]:
    """Reads video names, one per line, e.g. "Basketball/v_Basketball_g01_c01"; ".avi" and a trailing label are dropped.

    Raises:
        UserError: the file is missing or empty, a name is repeated or its class is none of `classes`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a text file with one video a line") from None
    videos: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        video = line.split()[0].removesuffix(".avi")
        where = f"{path}, line {number}"
        name = class_of_video(video)
        if name is None:
            raise UserError(f"{where}: '{video}' is no video name; expected Class/v_Class_g01_c01")
        label_of_class(name, where, classes)
        if video in videos:
            raise UserError(f"{where}: '{video}' is listed twice; keep one line per video")
        videos[video] = None
    if not videos:
        raise UserError(f"{path}: no video in this list; expected one video a line")
    return list(videos)


def read_pyannot(
    path: str | Path, testlist: str | Path | None = None, classes: Sequence[str] = UCF101_24_CLASSES
) -> GroundTruth:
    """Reads `pyannot.pkl` of gurkirt/corrected-UCF101-Annots.

    Format: {video: {'annotations': [{'label', 'sf', 'ef', 'boxes'}], 'numf', 'label'}}; sf is 0-based, ef exclusive;
    boxes are (x, y, width, height) stored as uint8 or uint16, so they are cast before x + width is formed.

    Args:
        path: the pickle file.
        testlist: the videos of the test split; default: `testlist01.txt` beside `path`. All others are training.
        classes: names of the labels, for data of one's own in this format.

    Raises:
        UserError: another format, unknown class, a tube outside its video, or a listed video without annotation.
    """
    data = load_pickle(path)
    if not isinstance(data, Mapping) or not data:
        raise UserError(f"{path}: holds a {type(data).__name__}; expected pyannot.pkl, {{video: annotations}}")
    truth = GroundTruth({}, {}, {}, [], [])
    for key, entry in data.items():
        video = str(key)
        where = f"{path}, video '{video}'"
        label = label_of_class(class_of_video(video) or video, where, classes)
        frames = _integer(entry, "numf", where)
        truth.frame_counts[video], truth.resolutions[video] = frames, UCF101_RESOLUTION
        truth.tubes[video] = []
        for number, annotation in enumerate(_field(entry, "annotations", where, Sequence)):
            here = f"{where}, annotation {number}"
            found = _integer(annotation, "label", here)
            if found != label:
                raise UserError(
                    f"{here}: label {found}, its class is number {label} of the {len(classes)}; correct the label"
                )
            first, end = _integer(annotation, "sf", here), _integer(annotation, "ef", here)
            boxes = _matrix(_field(annotation, "boxes", here), 4, here)
            if end - first != len(boxes):
                raise UserError(
                    f"{here}: frames {first} to {end} (exclusive) but {len(boxes)} boxes; one per frame needed"
                )
            boxes[:, 2:] += boxes[:, :2]
            truth.tubes[video].append(_checked(Tube(video, label, first, boxes), frames, UCF101_RESOLUTION, here))
    listed = Path(path).parent / "testlist01.txt" if testlist is None else Path(testlist)
    truth.test_videos = read_testlist(listed, classes)
    _check_listed(truth.test_videos, truth, f"{listed}")
    chosen = set(truth.test_videos)
    truth.train_videos = [video for video in truth.tubes if video not in chosen]
    return truth


def read_ucf101v2(path: str | Path, split: int = 1, classes: Sequence[str] = UCF101_24_CLASSES) -> GroundTruth:
    """Reads `UCF101v2-GT.pkl`, the file of the ACT detector and of MMAction.

    Format: {'labels', 'train_videos', 'test_videos', 'nframes', 'resolution': {video: (h, w)},
    'gttubes': {video: {label: [[N, 5] (frame, x1, y1, x2, y2)]}}}; frames are 1-based.

    Args:
        path: the pickle file.
        split: which of its train/test lists, 1-based.
        classes: names of the labels, for data of one's own in this format.

    Raises:
        UserError: another format, unknown class, a tube outside its video, frames that are not consecutive, or a
            listed video without annotation.
    """
    data = load_pickle(path)
    names = _field(data, "labels", f"{path}", Sequence)
    labels = [label_of_class(str(name), f"{path}, labels", classes) for name in names]
    truth = GroundTruth({}, {}, {}, [], [])
    counts, resolutions = _field(data, "nframes", f"{path}"), _field(data, "resolution", f"{path}")
    all_tubes = _field(data, "gttubes", f"{path}", Mapping)
    for video in all_tubes:
        where = f"{path}, video '{video}'"
        frames = _integer(counts, video, f"{path}, nframes")
        shape = np.asarray(_field(resolutions, video, f"{path}, resolution")).tolist()
        if not (isinstance(shape, list) and len(shape) == 2):
            raise UserError(f"{where}: resolution {shape}; expected (height, width) in pixels")
        height, width = int(shape[0]), int(shape[1])
        truth.frame_counts[video], truth.resolutions[video], truth.tubes[video] = frames, (height, width), []
        for found, arrays in _field(all_tubes, video, where, Mapping).items():
            if found not in range(len(labels)):
                raise UserError(f"{where}: label {found}; allowed is 0 to {len(labels) - 1}")
            # A lone array instead of a list of arrays is one tube.
            for array in [arrays] if isinstance(arrays, np.ndarray) and arrays.ndim == 2 else arrays:
                rows = _matrix(array, 5, where)
                first = int(rows[0, 0]) - 1 if len(rows) else 0
                if not np.array_equal(rows[:, 0], np.arange(first + 1, first + 1 + len(rows))):
                    raise UserError(f"{where}: the frames of a tube are not consecutive; give one row per frame")
                tube = Tube(video, labels[int(found)], first, np.ascontiguousarray(rows[:, 1:]))
                truth.tubes[video].append(_checked(tube, frames, (height, width), where))
    truth.train_videos = _split(data, "train_videos", split, path)
    truth.test_videos = _split(data, "test_videos", split, path)
    _check_listed(truth.train_videos + truth.test_videos, truth, f"{path}")
    return truth


def _field(entry: Any, key: str, where: str, kind: type = object) -> Any:
    """`entry[key]`, or UserError when `entry` is no mapping, has no such key or its value is not of `kind`."""
    if not isinstance(entry, Mapping) or key not in entry:
        found = f"has {', '.join(map(str, list(entry)[:5]))}" if isinstance(entry, Mapping) else type(entry).__name__
        raise UserError(f"{where}: no '{key}' (found: {found}); this is not the expected file format")
    if not isinstance(entry[key], kind):
        raise UserError(f"{where}: '{key}' is a {type(entry[key]).__name__}; this is not the expected file format")
    return entry[key]


def _integer(entry: Any, key: str, where: str) -> int:
    value = _field(entry, key, where)
    # Counts are numpy integers of any width, uint8 included.
    if not isinstance(value, (int, np.integer)):
        raise UserError(f"{where}: '{key}' is {value!r:.40}; expected a whole number")
    return int(value)


def _matrix(values: Any, columns: int, where: str) -> np.ndarray:
    """float32 [N, columns], a copy; integers below 2^24 are exact."""
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] != columns or array.dtype.kind not in "uif":
        raise UserError(f"{where}: boxes are {array.dtype} {list(array.shape)}; expected numbers [N, {columns}]")
    return array.astype(np.float32)


def _checked(tube: Tube, frames: int, resolution: tuple[int, int], where: str) -> Tube:
    """The tube itself, or UserError when it is empty or leaves the video in time or space."""
    if not len(tube):
        raise UserError(f"{where}: a tube without boxes; remove it")
    if tube.first_frame < 0 or tube.end_frame > frames:
        span = f"{tube.first_frame} to {tube.end_frame - 1}"
        raise UserError(f"{where}: tube over frames {span}, the video has 0 to {frames - 1}; correct the annotation")
    x1, y1, x2, y2 = tube.boxes.T
    height, width = resolution
    # Parts of a box may leave the frame; a box that does not touch it is in other units. NaN fails every comparison.
    good = (x1 <= x2) & (y1 <= y2) & (x1 <= width) & (y1 <= height) & (x2 >= 0) & (y2 >= 0)
    if not good.all():
        row = int(np.argmin(good))
        box = ", ".join(f"{value:g}" for value in tube.boxes[row])
        raise UserError(
            f"{where}: box ({box}) at frame {tube.first_frame + row} is no x1, y1, x2, y2 in a frame of "
            f"{width} x {height} pixels; correct the annotation"
        )
    return tube


def _split(data: Any, key: str, split: int, path: str | Path) -> list[str]:
    lists = _field(data, key, f"{path}", Sequence)
    if lists and isinstance(lists[0], str):
        lists = [lists]
    if not 1 <= split <= len(lists):
        raise UserError(f"{path}: split {split} of {key}; allowed is 1 to {len(lists)}")
    return [str(video) for video in lists[split - 1]]


def _check_listed(videos: Sequence[str], truth: GroundTruth, where: str) -> None:
    for video in videos:
        if video not in truth.tubes:
            raise UserError(f"{where}: video '{video}' has no annotation; use the list that came with the annotations")
