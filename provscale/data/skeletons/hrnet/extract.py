"""One video to one `SkeletonClip`: frames, boxes, keypoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from provscale.data.skeletons.clips import SkeletonClip
from provscale.data.skeletons.hrnet.boxes import Detector, FileBoxes, PersonBoxes
from provscale.data.skeletons.hrnet.pose import KEYPOINTS, PoseEstimator
from provscale.data.skeletons.hrnet.videos import Video, read_frames
from provscale.data.skeletons.hrnet.weights import DETECTOR_FILE, HRNET_FILE, require_file
from provscale.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What determines the result, and how it is computed.

    Attributes:
        weights: HRNet's checkpoint.
        detector_weights, boxes: one of the two: Faster R-CNN's checkpoint, or a file of boxes.
        flip: average with the mirrored crop.
        min_score: least detector score of a person.
        device: "cpu", "cuda" or "cuda:0".
        batch_size: frames for the detector and crops for HRNet that run together.
    """

    weights: Path
    detector_weights: Path | None = None
    boxes: Path | None = None
    flip: bool = True
    min_score: float = 0.5
    device: str = "cpu"
    batch_size: int = 16

    def check(self) -> None:
        """Raises UserError for a missing file or a choice that does not fit, before anything is loaded."""
        if (self.detector_weights is None) == (self.boxes is None):
            raise UserError("boxes of the persons: give one of --detector-weights FILE and --boxes FILE")
        if self.batch_size < 1:
            raise UserError(f"--batch-size: is {self.batch_size}, must be at least 1")
        if not 0 <= self.min_score <= 1:
            raise UserError(f"--min-score: is {self.min_score:g}, allowed is [0, 1]")
        require_file(self.weights, "--weights", HRNET_FILE, "MMPose's model zoo")
        if self.detector_weights is not None:
            origin = "torchvision's models (Faster R-CNN ResNet-50 FPN, COCO)"
            require_file(self.detector_weights, "--detector-weights", DETECTOR_FILE, origin)
        elif self.boxes is not None and not self.boxes.is_file():
            raise UserError(f"--boxes: {self.boxes} does not exist; give a .json of boxes or UCF101-24's ground truth")

    def fingerprint(self) -> dict[str, Any]:
        """What two runs must share so that their clips belong into one file; JSON types only."""
        values = asdict(self)
        for key in ("weights", "detector_weights", "boxes"):
            path = values[key]
            values[key] = None if path is None else f"{path.name}, {path.stat().st_size} bytes"
        return {key: values[key] for key in ("weights", "detector_weights", "boxes", "flip", "min_score")}


class Extractor:
    """Both networks, ready for any number of videos."""

    def __init__(self, settings: Settings, device: torch.device | None = None) -> None:
        """Loads the networks on `device` (default: that of the settings). Raises UserError as they do."""
        device = torch.device(settings.device) if device is None else device
        self.batch_size = settings.batch_size
        self.person_boxes: PersonBoxes
        if settings.boxes is not None:
            self.person_boxes = FileBoxes(settings.boxes)
        else:
            assert settings.detector_weights is not None, "Settings.check was not called"
            self.person_boxes = Detector(settings.detector_weights, device, settings.min_score)
        self.estimator = PoseEstimator(settings.weights, device, settings.flip)

    def __call__(self, video: Video) -> SkeletonClip:
        """The skeletons of all persons; M is the largest number of persons in a frame (of tubes, for ground truth).

        The row of a person is that of its box in its frame; frames with fewer persons are filled with zeros. Nobody in
        any frame: M = 0.

        Raises:
            UserError: a video that cannot be read or that the file of boxes does not contain.
        """
        places: list[tuple[int, int]] = []  # row and frame of each crop
        keypoints: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        frames: list[np.ndarray] = []
        count, shape = 0, (0, 0)

        def detect() -> None:
            nonlocal count
            for frame, (rows, boxes) in zip(frames, self.person_boxes(video, count, frames), strict=True):
                for row, box in zip(rows, boxes, strict=True):
                    places.append((int(row), count))
                    waiting.append((frame, box))
                    if len(waiting) == self.batch_size:
                        estimate()
                count += 1
            frames.clear()

        def estimate() -> None:
            images, boxes = zip(*waiting, strict=True)
            points, peaks = self.estimator(images, np.stack(boxes))
            keypoints.append(points)
            scores.append(peaks)
            waiting.clear()

        for frame in read_frames(video.path):
            shape = (int(frame.shape[0]), int(frame.shape[1]))
            frames.append(frame)
            if len(frames) == self.batch_size:
                detect()
        if frames:
            detect()
        if waiting:
            estimate()

        persons = 1 + max((row for row, _ in places), default=-1)
        all_keypoints = np.zeros((persons, count, KEYPOINTS, 2), dtype=np.float32)
        all_scores = np.zeros((persons, count, KEYPOINTS), dtype=np.float32)
        if places:
            rows, numbers = np.array(places).T
            all_keypoints[rows, numbers] = np.concatenate(keypoints)
            # A peak below zero means that the network sees nothing; 0 is the format's word for missing.
            all_scores[rows, numbers] = np.concatenate(scores).clip(min=0)
            all_keypoints[all_scores == 0] = 0
        return SkeletonClip(video.name, video.label, all_keypoints, all_scores, shape)
