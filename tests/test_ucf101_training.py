"""UCF101-24 from files to action tubes, on planted actions: real human motion of the package pybullet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from paths import ROOT

from provscale.config import DataConfig
from provscale.data import DataSplits, build_splits
from provscale.data.loader import LoadedItems, make_loader
from provscale.data.skeletons.planted_actions import CLASSES, PlantedOptions, make_clips, write_files
from provscale.data.skeletons.tracks import box_iou
from provscale.errors import UserError
from provscale.evaluation import build_evaluators
from provscale.evaluation.video_ap_evaluator import VideoAP, video_detections
from provscale.train import main

CONFIGS = ROOT / "configs"
pytest.importorskip("pybullet_data", reason="planted actions need the motion clips of pybullet")
SMALL = {"train": 12, "validation": 12, "test": 12, "length": 20, "frames": 8, "persons": 5}


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return build_splits(DataConfig(name="planted_actions", options=SMALL), 0)


# evaluation


def evaluated(splits: DataSplits, score: Callable[[int], np.ndarray], ranks: int = 1) -> dict[str, float]:
    """The metrics of `score(index)` [P, F, K] (logits), as `ranks` processes would compute them."""
    parts = []
    for rank in range(ranks):
        (evaluator,) = build_evaluators(["video_ap"], len(CLASSES))
        assert isinstance(evaluator, VideoAP)
        evaluator.begin(splits.test)
        indices = list(range(rank, len(splits.test), ranks))
        items = LoadedItems(splits.test, lambda item: item, splits.evaluation_transform, len(CLASSES), 0)
        (sample,) = make_loader(items, [[(0, index) for index in indices]], 0, False)
        evaluator.accumulate(sample, {"instance_scores": torch.from_numpy(np.stack([score(i) for i in indices]))})
        parts.append(evaluator)
    results = [part.compute(lambda _: [other.scores for other in parts]) for part in parts]
    assert all(result == results[0] for result in results)
    return results[0]


def oracle(splits: DataSplits, sign: float) -> Callable[[int], np.ndarray]:
    """Logits `sign` x 5 for the video's class where a skeleton is the actor's, by overlap with the true tube."""
    views: Any = splits.test

    def score(index: int) -> np.ndarray:
        view, clip = views.view(index), views.clip(index)
        logits = np.zeros((*view.persons.shape, len(CLASSES)), dtype=np.float32)
        for slot, column in zip(*np.nonzero(view.persons >= 0), strict=True):
            frame, seen = view.frames[column], clip.scores[view.persons[slot, column], view.frames[column]] > 0.1
            points = clip.keypoints[view.persons[slot, column], frame][seen]
            box = np.concatenate([points.min(axis=0), points.max(axis=0)])[None]
            (tube,) = views.ground_truth.tubes[view.video]
            inside = tube.first_frame <= frame < tube.end_frame
            actor = inside and box_iou(box, tube.boxes[frame - tube.first_frame])[0] >= 0.5
            logits[slot, column, clip.label] = sign * (5 if actor else -5)
        return logits

    return score


def test_perfect_and_reversed_scores(splits: DataSplits) -> None:
    """True actors first: every tube is found before any other. The true actors last: nearly nothing is."""
    perfect = evaluated(splits, oracle(splits, 1.0))
    assert perfect["video_ap@0.2"] == perfect["video_ap@0.5"] == 100
    assert perfect["frame_ap@0.5"] > 95  # boxes of neighbours may overlap the actor's by half
    assert evaluated(splits, oracle(splits, -1.0))["video_ap@0.5"] < 10


def test_processes_agree_with_one(splits: DataSplits) -> None:
    score = oracle(splits, 0.1)

    def noisy(index: int) -> np.ndarray:
        return score(index) + np.random.default_rng(index).normal(0, 1, (5, 8, len(CLASSES))).astype(np.float32)

    alone = evaluated(splits, noisy)
    assert 10 < alone["video_ap@0.5"] < 100
    assert evaluated(splits, noisy, ranks=3) == alone


def test_scores_reach_the_boxes_they_belong_to(splits: DataSplits) -> None:
    """Scores that name their skeleton: every detection's box is the extent of that skeleton's keypoints, plus 10 %."""
    views: Any = splits.test
    index = 1
    view, clip = views.view(index), views.clip(index)
    names = 100 * view.frames + view.persons
    (found,) = video_detections(views, {index: np.repeat(names[..., None], 2, axis=2)})
    assert found.video == view.video
    assert len(found.scores) == ((view.persons >= 0) & view.fresh).sum()
    for frame, box, name in zip(found.frames, found.boxes, found.scores[:, 0], strict=True):
        assert frame == name // 100
        seen = clip.scores[int(name) % 100, frame] > 0.1
        points = clip.keypoints[int(name) % 100, frame][seen]
        low, high = points.min(axis=0), points.max(axis=0)
        border = 0.1 * (high - low)
        np.testing.assert_allclose(box, np.concatenate([low - border, high + border]), rtol=1e-5)


def test_evaluator_refuses_what_it_cannot_use(splits: DataSplits) -> None:
    (evaluator,) = build_evaluators(["video_ap"], len(CLASSES))
    with pytest.raises(UserError, match="needs a data set with person tubes"):
        evaluator.begin(splits.train)
    evaluator.begin(splits.test)
    with pytest.raises(UserError, match="no clip was evaluated"):
        evaluator.compute()


# files


def test_files_give_the_same_data_set(splits: DataSplits, tmp_path: Path) -> None:
    """Written in the formats of MMAction2 and pyannot, and read by `ucf101_24`: items and tubes are equal."""
    planted = PlantedOptions(**{key: SMALL[key] for key in ("train", "test", "length")})
    list(write_files(tmp_path / "new", *make_clips(planted, 0.1)))
    options = {"frames": 8, "persons": 5, "classes": list(CLASSES)}
    read = build_splits(DataConfig(name="ucf101_24", root=str(tmp_path / "new"), options=options), 0)
    assert read.class_names == splits.class_names
    for ours, theirs in ((read.train, splits.train), (read.test, splits.test)):
        assert len(ours) == len(theirs)
        for index in range(len(theirs)):
            assert (ours[index].name, ours[index].target) == (theirs[index].name, theirs[index].target)
            torch.testing.assert_close(ours[index].inputs, theirs[index].inputs, rtol=0, atol=0)
    ours, theirs = read.test.ground_truth, splits.test.ground_truth  # type: ignore[attr-defined]
    assert ours.test_videos == theirs.test_videos
    for video in theirs.test_videos:
        np.testing.assert_array_equal(ours.tubes[video][0].boxes, theirs.tubes[video][0].boxes)


def test_missing_files_say_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root: is not set"):
        build_splits(DataConfig(name="ucf101_24"), 0)
    with pytest.raises(UserError, match=r"ucf101_2d.pkl does not exist; download it from https://.*ucf101_2d.pkl"):
        build_splits(DataConfig(name="ucf101_24", root=str(tmp_path)), 0)
    (tmp_path / "ucf101_2d.pkl").touch()
    with pytest.raises(UserError, match=r"pyannot.pkl does not exist; download it from .*corrected-UCF101-Annots"):
        build_splits(DataConfig(name="ucf101_24", root=str(tmp_path)), 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ucf101_24", {"frame": 8}, r"data\.options\.frame: unknown option of ucf101_24, did you mean 'frames'"),
        ("planted_actions", {"frames": 0}, "frames: is 0, must be at least 1"),
        ("planted_actions", {"bias": 2}, r"bias: is 2.0, must be in \[0, 1\]"),
        ("planted_actions", {"length": 10}, "length: is 10, must be at least 15"),
        (
            "planted_actions",
            {"peple": 3},
            r"data\.options\.peple: unknown option of planted_actions, did you mean 'people'",
        ),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_splits(DataConfig(name=name, root=".", options=options), 0)


# configs and training


def test_configs_differ_in_the_synthesis_only() -> None:
    mixed, plain = (yaml.safe_load((CONFIGS / f"ucf101_hrnet{end}.yaml").read_text()) for end in ("", "_nomix"))
    assert {key for key in mixed if mixed[key] != plain[key]} == {"run", "synthesis", "guidance"}


def test_both_arms_train(tmp_path: Path) -> None:
    """Three steps of each arm through the entry point, from batches to action tubes, with its start-up self-check."""
    words = ["--cfg", str(CONFIGS / "planted_actions.yaml"), "--run.dir", str(tmp_path), "--tracking.wandb", "disabled",
             "--data.options", json.dumps(SMALL), "--data.batch_size", "4", "--train.epochs", "1",
             "--model.options", "{width: 8}"]  # fmt: skip
    for name, alpha in (("guided", "0.01"), ("baseline", "0")):
        assert main([*words, "--run.name", name, "--guidance.alpha", alpha]) == 0
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["kind"] != "gradients"]
        train, evaluation = rows[2], rows[3]
        assert [row["kind"] for row in rows[3:]] == ["validation", "test", "test"]
        assert train["step"] == 3
        assert (train["loss_guidance"] > 0) == (name == "guided")
        assert train["loss"] == pytest.approx(train["loss_cls"] + float(alpha) * train["loss_guidance"])
        assert 0 <= evaluation["video_ap@0.5"] <= evaluation["video_ap@0.2"] <= 100
        assert {"video_ap@0.75", "video_ap@0.5:0.95", "frame_ap@0.5", "accuracy"} <= set(evaluation)
