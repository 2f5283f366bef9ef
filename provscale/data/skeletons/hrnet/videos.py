"""Videos to extract skeletons from: files, or folders of numbered frames as UCF101-24 has them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from provscale.data.skeletons.clips import UCF101_CLASSES
from provscale.data.skeletons.tubes import UCF101_24_CLASSES, class_of_video, label_of_class
from provscale.errors import UserError

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm")
_FRAME_NAME = re.compile(r"(\d+)\.(jpg|jpeg|png)", re.IGNORECASE)


@dataclass(frozen=True)
class Video:
    """One video: `path` of the file or frame folder, `name` as in the ground truth, `label` in [0, 24)."""

    path: Path
    name: str
    label: int


def find_videos(paths: Iterable[str | Path], action: str | None = None) -> list[Video]:
    """The videos named by `paths`, in their order.

    A path is a video file, a folder of frames (00001.jpg, 00002.jpg, ...), or a folder that is searched for both. The
    class is read from the name (v_Basketball_g01_c01), else it is the name of the folder around it, else `action`.
    Videos of UCF101's other 77 classes are left out with a warning.

    Raises:
        UserError: a path that does not exist or holds no video, a video without a class, or two of one name.
    """
    videos: dict[str, Video] = {}
    left_out = 0
    for given in map(Path, paths):
        for path in _expand(given):
            stem = path.stem if path.is_file() else path.name
            found = _class(stem, path, action)
            if found not in UCF101_24_CLASSES and found in UCF101_CLASSES:
                left_out += 1
                continue
            label = label_of_class(found, str(path))
            name = f"{found}/{stem}" if class_of_video(stem) else stem
            if name in videos:
                raise UserError(f"{path}: has the name '{name}' of {videos[name].path}; give each video once")
            videos[name] = Video(path, name, label)
    if left_out:
        warnings.warn(f"{left_out} videos of classes beyond the 24 of UCF101-24 are left out", stacklevel=2)
    if not videos:
        raise UserError("no video of the 24 classes of UCF101-24 among the given paths; give others")
    return list(videos.values())


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video file or frame folder in order, uint8 [H, W, 3] in BGR, all of one size.

    Raises:
        UserError: nothing can be decoded, a number is missing among the frames, or the size changes.
    """
    shape = None
    for number, frame in enumerate(_decode_folder(path) if path.is_dir() else _decode_file(path), start=1):
        if shape is not None and frame.shape != shape:
            raise UserError(
                f"{path}: frame {number} is {frame.shape[1]} x {frame.shape[0]}, those before {shape[1]} x {shape[0]}; "
                "all frames of a video must have one size"
            )
        shape = frame.shape
        yield frame


def _expand(path: Path) -> list[Path]:
    if path.is_file() or (path.is_dir() and _is_frame_folder(path)):
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: does not exist; give a video file or a folder of frames 00001.jpg, 00002.jpg, ...")
    inside = (inner for inner in path.rglob("*") if not any(part.startswith(".") for part in inner.parts[1:]))
    found = sorted(
        inner for inner in inside
        if (inner.is_dir() and _is_frame_folder(inner)) or inner.suffix.lower() in VIDEO_SUFFIXES
    )  # fmt: skip
    if not found:
        raise UserError(f"{path}: holds neither frames (00001.jpg, 00002.jpg, ...) nor videos ({VIDEO_SUFFIXES})")
    return found


def _class(stem: str, path: Path, action: str | None) -> str:
    named = class_of_video(stem)
    around = path.absolute().parent.name
    if named is None and around not in UCF101_CLASSES:
        if action is None:
            raise UserError(
                f"{path}: neither its name (v_Basketball_g01_c01) nor its folder gives a class; add --action CLASS"
            )
        return action
    # UCF101 itself spells HandstandPushups both ways.
    known = {name.lower(): name for name in UCF101_CLASSES}
    return known.get((named or around).lower(), named or around)


def _is_frame_folder(path: Path) -> bool:
    return any(_FRAME_NAME.fullmatch(entry.name) for entry in path.iterdir())


def _decode_folder(path: Path) -> Iterator[np.ndarray]:
    numbered: dict[int, Path] = {}
    for entry in path.iterdir():
        if match := _FRAME_NAME.fullmatch(entry.name):
            number = int(match[1])
            if number in numbered:
                raise UserError(f"{path}: frame {number} is there twice ({entry.name}, {numbered[number].name})")
            numbered[number] = entry
    for number in range(1, len(numbered) + 1):
        if number not in numbered:
            raise UserError(
                f"{path}: frame {number} is missing, the last is {max(numbered)}; frames count from 1 without gaps: "
                "copy the missing files"
            )
        frame = cv2.imread(str(numbered[number]), cv2.IMREAD_COLOR)
        if frame is None:
            raise UserError(f"{numbered[number]}: cannot be read as an image; it is damaged, fetch it again")
        yield np.asarray(frame)


def _decode_file(path: Path) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    try:
        count = 0
        while capture.isOpened():
            good, frame = capture.read()
            if not good:
                break
            count += 1
            yield np.asarray(frame)
        if not count:
            raise UserError(f"{path}: no frame can be decoded; it is damaged or no video that OpenCV reads")
        # Headers are off by one at times; more is a file that breaks off.
        announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if announced > count + 1:
            warnings.warn(f"{path}: decoding ends after {count} frames, its header says {announced}", stacklevel=2)
    finally:
        capture.release()
