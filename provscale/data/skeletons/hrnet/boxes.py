"""Where the persons are in a frame: from a file, or from torchvision's Faster R-CNN."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torchvision.models import detection

from provscale.data.skeletons.hrnet.videos import Video
from provscale.data.skeletons.hrnet.weights import DETECTOR_FILE, load_into, load_named_weights
from provscale.data.skeletons.pickles import load_pickle
from provscale.data.skeletons.tubes import GroundTruth, read_pyannot, read_ucf101v2
from provscale.errors import UserError

T = TypeVar("T")
_PERSON = 1  # torchvision's COCO categories: 0 is background


class FrameBoxes(NamedTuple):
    """The n persons of one frame: `rows` int64 [n], their place among the M persons; `boxes` float32 [n, 4] xyxy."""

    rows: np.ndarray
    boxes: np.ndarray


class PersonBoxes(Protocol):
    def __call__(self, video: Video, first: int, frames: Sequence[np.ndarray]) -> list[FrameBoxes]:
        """Boxes in each of `frames` (uint8 [H, W, 3] BGR), which begin at the 0-based frame `first` of `video`."""


class FileBoxes:
    """Boxes read from a file.

    - `.json`: {video: [[frame, x1, y1, x2, y2], ...]}, frames from 0, pixels of the video itself. Persons of a frame
      keep the file's order.
    - `.pkl`: the ground truth of UCF101-24 in either format; each tube keeps its row, so rows are tracks. Boxes are
      scaled from the resolution of the ground truth to that of the video.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError: another format, or boxes that are no x1 < x2, y1 < y2."""
        self.path = path
        self.truth: GroundTruth | None = None
        self.listed: dict[str, np.ndarray] = {}
        if path.suffix == ".json":
            self.listed = _read_json(path)
        else:
            data = load_pickle(path)
            v2 = isinstance(data, Mapping) and "gttubes" in data
            self.truth = read_ucf101v2(path) if v2 else read_pyannot(path)

    def __call__(self, video: Video, first: int, frames: Sequence[np.ndarray]) -> list[FrameBoxes]:
        return [self._frame(video, first + offset, frame.shape[:2]) for offset, frame in enumerate(frames)]

    def _frame(self, video: Video, number: int, shape: tuple[int, ...]) -> FrameBoxes:
        if self.truth is None:
            table = self._of(self.listed, video)
            boxes = table[table[:, 0] == number, 1:].astype(np.float32)
            return FrameBoxes(np.arange(len(boxes)), boxes)
        tubes = self._of(self.truth.tubes, video)
        rows = [row for row, tube in enumerate(tubes) if tube.first_frame <= number < tube.end_frame]
        boxes = np.array([tubes[row].boxes[number - tubes[row].first_frame] for row in rows], dtype=np.float32)
        height, width = self.truth.resolutions[video.name]
        scale = np.array([shape[1] / width, shape[0] / height] * 2, dtype=np.float32)
        return FrameBoxes(np.array(rows, dtype=np.int64), boxes.reshape(-1, 4) * scale)

    def _of(self, table: Mapping[str, T], video: Video) -> T:
        if video.name not in table:
            raise UserError(f"--boxes: {self.path} has no video '{video.name}'; leave it out or add its boxes")
        return table[video.name]


class Detector:
    """Persons found by Faster R-CNN (ResNet-50 FPN, first or second version), the most certain first."""

    def __init__(self, weights: Path, device: torch.device, min_score: float = 0.5) -> None:
        """Raises UserError when the weights are not those of one of the two networks."""
        tensors = load_named_weights(weights, "--detector-weights")
        # Only the second version's region proposal head has two convolutions.
        build = (
            detection.fasterrcnn_resnet50_fpn_v2
            if "rpn.head.conv.1.0.weight" in tensors
            else detection.fasterrcnn_resnet50_fpn
        )
        self.network = build(weights=None, weights_backbone=None)
        load_into(self.network, tensors, weights, "--detector-weights", DETECTOR_FILE)
        self.network.to(device).eval()
        self.device = device
        self.min_score = min_score

    @torch.inference_mode()
    def __call__(self, video: Video, first: int, frames: Sequence[np.ndarray]) -> list[FrameBoxes]:
        images = [
            torch.from_numpy(frame[..., ::-1].copy()).to(self.device).permute(2, 0, 1).float() / 255 for frame in frames
        ]
        found = []
        for result in self.network(images):
            chosen = (result["labels"] == _PERSON) & (result["scores"] >= self.min_score)
            boxes = result["boxes"][chosen].cpu().numpy().astype(np.float32)
            found.append(FrameBoxes(np.arange(len(boxes)), boxes))
        return found


def _read_json(path: Path) -> dict[str, np.ndarray]:
    """Video -> float64 [D, 5] (frame, x1, y1, x2, y2)."""
    form = "expected {video: [[frame, x1, y1, x2, y2], ...]}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--boxes: {path} cannot be read ({error}); {form}") from None
    if not isinstance(data, dict):
        raise UserError(f"--boxes: {path} holds a {type(data).__name__}; {form}")
    tables = {}
    for video, rows in data.items():
        try:
            table = np.array(rows, dtype=np.float64).reshape(-1, 5) if rows else np.zeros((0, 5))
        except (TypeError, ValueError):
            raise UserError(f"--boxes: {path}, video '{video}': rows are not five numbers; {form}") from None
        frame, x1, y1, x2, y2 = table.T
        bad = np.flatnonzero(~(np.isfinite(table).all(axis=1) & (frame >= 0) & (x1 < x2) & (y1 < y2)))
        if len(bad):
            shown = ", ".join(f"{value:g}" for value in table[bad[0]])
            raise UserError(f"--boxes: {path}, video '{video}', row {bad[0]}: [{shown}] is no box in a frame; {form}")
        tables[video] = table
    return tables
