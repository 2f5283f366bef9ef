"""Clips of skeletons as items: person slots, frame sampling, and views that together show every frame.

P person slots, T frames of a clip, F frames of an item, V keypoints, E = 3V elements of a skeleton: x, y, confidence of
each keypoint in turn. x and y run from -1 to 1 over the frame's width and height. All three are 0 where a keypoint is
missing, and `valid_mask` is 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from provscale.data.skeletons.augment import Augmentation
from provscale.data.skeletons.clips import SkeletonClip
from provscale.data.skeletons.tracks import link_boxes, skeleton_boxes
from provscale.data.skeletons.tubes import GroundTruth
from provscale.sample import Item

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip

MIRRORED = tuple(
    COCO_KEYPOINTS.index(name.replace("left", "?").replace("right", "left").replace("?", "right"))
    for name in COCO_KEYPOINTS
)
"""For each COCO keypoint, the one it becomes in a mirror."""


def person_slots(clip: SkeletonClip, slots: int, min_score: float, min_iou: float = 0.3) -> np.ndarray:
    """Gives every slot one person for as long as that person can be followed.

    Detections come in no order, so their boxes are linked to tracks first; tracks with more confident keypoints choose
    first among the slots that are free in all their frames, and what finds none is left out.

    Args:
        slots: P.
        min_score: confidence above which a keypoint counts.
        min_iou: smallest overlap of a person's boxes in consecutive frames.

    Returns:
        int16 [P, T], row in the clip's M; -1 where nobody is.
    """
    boxes = skeleton_boxes(clip, min_score)
    tracks = link_boxes(boxes.frames, boxes.boxes, min_iou)
    evidence = clip.scores[boxes.persons, boxes.frames].sum(axis=1)
    owner = np.full((slots, clip.keypoints.shape[1]), -1, dtype=np.int16)
    for track in sorted(tracks, key=lambda rows: -float(evidence[rows].sum())):
        frames = boxes.frames[track]
        free = np.flatnonzero((owner[:, frames] < 0).all(axis=1))
        if len(free):
            owner[free[0], frames] = boxes.persons[track]
    return owner


def skeleton_elements(clip: SkeletonClip, owner: np.ndarray, frames: np.ndarray, min_score: float) -> np.ndarray:
    """Inputs float32 [P, F, E] at the given frames [F], from the slots `owner` [P, T]."""
    persons = owner[:, frames]
    points, scores = clip.keypoints[persons, frames], clip.scores[persons, frames]
    there = (scores > min_score) & (persons >= 0)[..., None]
    height, width = clip.shape
    points = points * (2 / np.array([width, height], dtype=np.float32)) - 1
    elements = np.concatenate([points, scores[..., None]], axis=-1) * there[..., None]
    return elements.reshape(*persons.shape, -1).astype(np.float32)


def segments(frames: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First and end frames, int64 [count], of equal parts of a clip; with too few frames, parts share them."""
    edges = np.arange(count + 1) * frames // count
    return edges[:-1], np.maximum(edges[1:], edges[:-1] + 1)


class View(NamedTuple):
    """One item of a split that is evaluated.

    Attributes:
        video: name of the clip.
        frames: int64 [F], 0-based frame of each column.
        persons: int16 [P, F], row in the clip's M of each skeleton, -1 where nobody is.
        fresh: bool [F], False for frames that another view, or an earlier column, has already.
    """

    video: str
    frames: np.ndarray
    persons: np.ndarray
    fresh: np.ndarray


class SkeletonItems:
    """Clips as items over all their frames, [P, T, E]; a transform (`SampleFrames`) brings them to F frames.

    Args:
        clips: in the order of the items.
        persons: P.
        min_score: confidence above which a keypoint counts.
    """

    def __init__(self, clips: Sequence[SkeletonClip], persons: int, min_score: float) -> None:
        self.clips, self.min_score = list(clips), min_score
        self.owners = [person_slots(clip, persons, min_score) for clip in self.clips]

    def __len__(self) -> int:
        return len(self.clips)

    def label(self, index: int) -> int:
        return self.clips[index].label

    def __getitem__(self, index: int) -> Item:
        return self.item(index, np.arange(self.clips[index].keypoints.shape[1]))

    def item(self, index: int, frames: np.ndarray) -> Item:
        clip = self.clips[index]
        inputs = torch.from_numpy(skeleton_elements(clip, self.owners[index], frames, self.min_score))
        seen = inputs.unflatten(2, (-1, 3))[..., 2:] > 0
        valid = seen.expand(*seen.shape[:3], 3).flatten(2).float()
        return Item(inputs, clip.label, clip.name, valid_mask=valid)


class SkeletonViews:
    """Every clip as ceil(T / F) items of F frames, each spread over the whole clip as in training.

    The clip is cut into F parts; view j shows the j-th frame of each part (its last one, if it has no j-th). So each
    frame is scored once, among frames as far apart as the network was trained with.

    Attributes:
        ground_truth: the tubes that these clips are evaluated against.
        box_margin: share of a skeleton's size added on each side to make it a box.
        tracks: folder of person tracks that are evaluated in place of the skeletons' boxes, or None.
    """

    def __init__(
        self,
        clips: SkeletonItems,
        frames: int,
        ground_truth: GroundTruth,
        box_margin: float = 0.0,
        tracks: Path | None = None,
    ) -> None:
        self.source, self.frames, self.ground_truth, self.box_margin = clips, frames, ground_truth, box_margin
        self.tracks = tracks
        self.places: list[tuple[int, int]] = []
        for index, clip in enumerate(clips.clips):
            starts, ends = segments(clip.keypoints.shape[1], frames)
            self.places += [(index, turn) for turn in range(int((ends - starts).max()))]

    def __len__(self) -> int:
        return len(self.places)

    def label(self, index: int) -> int:
        return self.source.label(self.places[index][0])

    def __getitem__(self, index: int) -> Item:
        item = self.source.item(self.places[index][0], self.view(index).frames)
        item.name = f"{item.name}#{self.places[index][1]}"
        return item

    def clip(self, index: int) -> SkeletonClip:
        """The clip that a view belongs to."""
        return self.source.clips[self.places[index][0]]

    def view(self, index: int) -> View:
        position, turn = self.places[index]
        clip = self.source.clips[position]
        starts, ends = segments(clip.keypoints.shape[1], self.frames)
        frames = np.minimum(starts + turn, ends - 1)
        fresh = (starts + turn < ends) & (np.diff(frames, prepend=-1) > 0)
        return View(clip.name, frames, self.source.owners[position][:, frames], fresh)


class SampleFrames:
    """Transform: F frames of an item, one from each of F equal parts of the clip; random ones also mirror the clip.

    Args:
        frames: F.
        random: draw the frame of each part, and mirror half of the clips; else the middle frame.
        mirrored: for each keypoint, the one it becomes in a mirror; None: never mirror.
        augmentation: of random ones, before frames are drawn; None = nothing.
    """

    def __init__(
        self,
        frames: int,
        random: bool,
        mirrored: Sequence[int] | None = MIRRORED,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.frames, self.random, self.augmentation = frames, random, augmentation
        self.mirrored = None if mirrored is None else torch.tensor(list(mirrored))

    def __call__(self, item: Item) -> Item:
        if self.random and self.augmentation is not None:
            item = self.augmentation(item)
        starts, ends = (torch.from_numpy(edge) for edge in segments(item.inputs.shape[1], self.frames))
        share = torch.rand(self.frames) if self.random else torch.full((self.frames,), 0.5)
        chosen = torch.minimum(starts + (share * (ends - starts)).long(), ends - 1)
        item.inputs = item.inputs[:, chosen]
        if item.valid_mask is not None:
            item.valid_mask = item.valid_mask[:, chosen]
        if self.random and self.mirrored is not None and torch.rand(()) < 0.5:
            item.inputs = self.mirror(item.inputs, -1.0)
            if item.valid_mask is not None:
                item.valid_mask = self.mirror(item.valid_mask, 1.0)
        return item

    def mirror(self, elements: torch.Tensor, sign: float) -> torch.Tensor:
        """Swaps left and right keypoints of [P, F, E], and multiplies x by `sign`."""
        points = elements.unflatten(2, (-1, 3))[:, :, self.mirrored]
        return (points * torch.tensor([sign, 1.0, 1.0])).flatten(2)
