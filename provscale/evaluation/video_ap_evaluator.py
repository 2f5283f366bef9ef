"""Evaluator `video_ap`: from the scores of skeletons to action tubes and their average precision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from provscale.data.skeletons.items import SkeletonViews
from provscale.data.skeletons.person_tracks import PersonTracks, read_person_tracks
from provscale.data.skeletons.tracks import FrameDetections, box_iou, skeleton_boxes
from provscale.data.splits import ItemSource
from provscale.errors import UserError
from provscale.evaluation.base import EVALUATORS, Evaluator, Gather, alone
from provscale.evaluation.video_ap import build_tubes, frame_ap, video_ap
from provscale.sample import Sample


@EVALUATORS.register("video_ap")
class VideoAP(Evaluator):
    """Video AP and frame AP in percent, from `outputs["instance_scores"]`, logits of skeletons [B, P, F, K].

    A skeleton's scores are the softmax of its logits [our choice], its box the extent of its keypoints. Boxes of
    consecutive frames are linked to tubes; a tube's score is the mean over its frames (`video_ap.ACT`).
    Metrics: `video_ap@0.2`, `@0.5`, `@0.75`, `@0.5:0.95`, and `frame_ap@0.5`.
    """

    requires = frozenset({"instance_scores"})

    def __init__(self, num_classes: int, group_names: Sequence[str] = ()) -> None:
        self.num_classes = num_classes
        self.views: SkeletonViews | None = None
        self.scores: dict[int, np.ndarray] = {}
        """Position of an item -> float32 [P, F, K]."""

    def begin(self, source: ItemSource) -> None:
        """Raises UserError when the items have no tubes."""
        if not isinstance(source, SkeletonViews):
            raise UserError(
                "evaluation.metrics: 'video_ap' needs a data set with person tubes, such as ucf101_24; remove it"
            )
        self.views = source

    def accumulate(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Adds one batch.

        Raises:
            UserError: scores that are not finite.
        """
        logits = outputs["instance_scores"].detach().float()
        if not bool(logits.isfinite().all()):
            raise UserError("video_ap: scores are NaN or infinite; the network diverged, use an earlier checkpoint")
        scores = logits.softmax(dim=3).cpu().numpy()
        self.scores.update(zip(sample.index.tolist(), scores, strict=True))

    def compute(self, gather: Gather = alone) -> dict[str, float]:
        """The metrics named in the class's docstring, 0 to 100. Videos without skeletons count as missed.

        Raises:
            UserError: nothing was accumulated.
        """
        scores: dict[int, np.ndarray] = {}
        for part in gather(self.scores):
            scores.update(part)
        if self.views is None or not scores:
            raise UserError("video_ap: no clip was evaluated; check that the split is not empty")
        detections = list(video_detections(self.views, scores))
        tubes = [tube for item in detections for tube in build_tubes(item)]
        return {
            **video_ap(tubes, self.views.ground_truth),
            "frame_ap@0.5": frame_ap(detections, self.views.ground_truth),
        }


def video_detections(views: SkeletonViews, scores: dict[int, np.ndarray]) -> Iterator[FrameDetections]:
    """The scored boxes of each video.

    Args:
        scores: item -> [P, F, K]; items that are not there were not evaluated, and their frames have no boxes.
    """
    by_video: dict[str, list[int]] = defaultdict(list)
    for index in sorted(scores):
        by_video[views.clip(index).name].append(index)
    for video, indices in by_video.items():
        clip = views.clip(indices[0])
        found = skeleton_boxes(clip, views.source.min_score, views.box_margin)
        box_of = np.full(clip.scores.shape[:2], -1)
        box_of[found.persons, found.frames] = np.arange(len(found.frames))
        rows, values = [], []
        for index in indices:
            view = views.view(index)
            chosen = (view.persons >= 0) & view.fresh
            slots, columns = np.nonzero(chosen)
            rows.append(box_of[view.persons[slots, columns], view.frames[columns]])
            values.append(scores[index][slots, columns])
        order = np.concatenate(rows)
        detections = FrameDetections(video, found.frames[order], found.boxes[order], np.concatenate(values))
        yield detections if views.tracks is None else on_tracks(detections, read_person_tracks(views.tracks, video))


def on_tracks(detections: FrameDetections, tracks: PersonTracks, min_iou: float = 0.1) -> FrameDetections:
    """The boxes of tracks, each with the scores of the skeleton in the same frame that overlaps it most.

    Args:
        min_iou: a box that no skeleton overlaps so far is left out: nothing is known of what is done in it.
    """
    rows, places = [], []
    for frame in np.unique(tracks.frames):
        boxes, skeletons = np.flatnonzero(tracks.frames == frame), np.flatnonzero(detections.frames == frame)
        if len(skeletons):
            ious = box_iou(tracks.boxes[boxes, None], detections.boxes[skeletons][None])
            good = ious.max(axis=1) >= min_iou
            places.append(boxes[good])
            rows.append(skeletons[ious.argmax(axis=1)[good]])
    chosen = np.concatenate([*places, np.zeros(0, dtype=np.int64)])
    scores = detections.scores[np.concatenate([*rows, np.zeros(0, dtype=np.int64)])]
    return FrameDetections(detections.video, tracks.frames[chosen], tracks.boxes[chosen], scores)
