"""Train, validation and test: where a validation split comes from, and what must not be in two splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from folders import make_image_folder, rewrite
from tiny_runs import arguments

from provscale.config import DataConfig
from provscale.data import DataSplits, build_splits
from provscale.data.skeletons.clips import SkeletonClip
from provscale.data.skeletons.items import SkeletonViews
from provscale.data.skeletons.tubes import GroundTruth, Tube
from provscale.data.skeletons.ucf101 import SkeletonOptions, skeleton_splits
from provscale.data.splits import ItemSource
from provscale.data.validation import held_out_positions, hold_out
from provscale.errors import UserError
from provscale.train import main


def names(source: ItemSource) -> list[str]:
    return [source[index].name for index in range(len(source))]


def folder_splits(root: Path, share: float | None = None, seed: int = 0) -> DataSplits:
    return build_splits(DataConfig(name="imagefolder", root=str(root), image_size=16, validation_share=share), seed)


# ---- which items are held out ------------------------------------------------------------------------------------
def test_share_of_every_class() -> None:
    """A fifth of 50, 10 and 2 items is 10, 2 and at least 1; of a class with one item, it stays in train."""
    labels = [0] * 50 + [1] * 10 + [2] * 2 + [3]
    held = held_out_positions(labels, range(len(labels)), 0.2, seed=0)
    assert Counter(labels[position] for position in held) == {0: 10, 1: 2, 2: 1}
    assert held == sorted(set(held))


def test_share_is_drawn_by_the_seed() -> None:
    labels = [index % 3 for index in range(300)]
    draws = [held_out_positions(labels, range(300), 0.1, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert held_out_positions(labels[:30], range(30), 0.1, 0) != [3 * number for number in range(3)], "no prefix"


def test_almost_everything_leaves_one_item_of_each_class() -> None:
    labels = [0] * 4 + [1] * 3
    held = held_out_positions(labels, range(7), 0.99, seed=0)
    assert Counter(labels[position] for position in held) == {0: 3, 1: 2}


def test_groups_stay_together() -> None:
    """10 groups of 7 items in each of two classes: two of them are a fifth."""
    labels = [index // 70 for index in range(140)]
    groups = [index // 7 for index in range(140)]
    held = held_out_positions(labels, groups, 0.2, seed=3)
    assert Counter(Counter(groups[position] for position in held).values()) == {7: 4}
    assert Counter(labels[position] for position in held) == {0: 14, 1: 14}


# ---- data.validation_share ---------------------------------------------------------------------------------------
def test_own_validation_split_is_used_unless_told_otherwise() -> None:
    def digits(share: float | None) -> DataSplits:
        options = {"train": 8, "edits": 4, "validation": 6, "test": 4}
        return build_splits(DataConfig(image_size=32, validation_share=share, options=options), 0)

    own = digits(None)
    assert (own.selected_on, len(own.evaluated("validation"))) == ("validation", 6)
    assert not {item.split("-")[0] for item in names(own.evaluated("validation"))} & {"train", "test"}
    on_test = digits(0)
    assert on_test.selected_on == "test"
    with pytest.raises(UserError, match="there is no validation split"):
        on_test.evaluated("validation")
    with pytest.raises(UserError, match=r"data\.validation_share: is 0\.1, but this data set has a validation split"):
        digits(0.1)


@pytest.mark.parametrize("share", ["1", "-0.1", "nan"])
def test_impossible_shares(share: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, data__validation_share=share)) == 2
    assert "data.validation_share: is" in capsys.readouterr().err


# ---- image folders -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["validation", "val"])
def test_validation_folder(tmp_path: Path, name: str) -> None:
    root = make_image_folder(tmp_path / "images", validation=True)
    (root / "validation").rename(root / name)
    splits = folder_splits(root)
    assert names(splits.evaluated(splits.selected_on)) == [str(root / name / f"{index}.png") for index in range(6)]
    (root / ("val" if name == "validation" else "validation")).mkdir()
    with pytest.raises(UserError, match="both validation/ and val/; keep one"):
        folder_splits(root)


def sourced(root: Path) -> Path:
    """Names the source of every edit: edit i was made of training image i."""
    (root / "edits" / "metadata.csv").write_text(
        "file_name,label,source_file_name\n" + "".join(f"{n}.png,{n % 2},../train/{n}.png\n" for n in range(8))
    )
    return root


def test_held_out_images_and_their_edits_are_not_trained_on(tmp_path: Path) -> None:
    """A quarter of two classes of 8 images is 4 images."""
    root = sourced(make_image_folder(tmp_path / "images"))
    splits = folder_splits(root, 0.25)
    assert splits.edits is not None
    train, validation = set(names(splits.train)), set(names(splits.evaluated("validation")))
    assert len(validation) == 4
    assert train | validation == {str(root / "train" / f"{number}.png") for number in range(16)}
    assert not train & validation
    numbers = {Path(name).stem for name in validation}
    edited = {Path(name).stem for name in names(splits.edits)}
    assert edited == {str(number) for number in range(8)} - numbers
    assert edited != {str(number) for number in range(8)}, "else this test shows nothing"
    assert names(splits.evaluated("train")) == names(splits.train)
    assert set(names(folder_splits(root, 0.25, seed=1).evaluated("validation"))) != validation


def test_edits_of_unknown_images_are_refused(tmp_path: Path) -> None:
    """Half of this folder's edits have a mask and no source: one of them may show an image that is held out."""
    splits = folder_splits(make_image_folder(tmp_path / "images"), 0.25)
    assert splits.edits is not None
    with pytest.raises(UserError, match=r"which training image .*1\.png is an edit of"):
        len(splits.edits)


def test_held_out_images_have_their_annotations(tmp_path: Path) -> None:
    """And metrics are those that both validation and test images have annotations for."""
    root = make_image_folder(tmp_path / "images")
    assert folder_splits(root).best == "worst_group"
    assert (folder_splits(root, 0.25).best, folder_splits(root, 0.25).metrics) == ("accuracy", ("group_accuracy",))
    lines = (root / "train" / "metadata.csv").read_text().splitlines()[1:]
    (root / "train" / "metadata.csv").write_text(
        "file_name,label,group,x0,y0,x1,y1\n" + "".join(f"{line},1,2,3,9,9.5\n" for line in lines)
    )
    splits = folder_splits(root, 0.25)
    assert (splits.best, splits.metrics) == ("worst_group", ("group_accuracy", "maxboxacc"))
    assert splits.train[0].annotations == {}
    for split in ("validation", "train"):
        annotations = splits.evaluated(split)[0].annotations  # type: ignore[arg-type]
        assert (annotations["group"], annotations["box"].tolist()) == (1, [[2.0, 3.0, 9.0, 9.5]])


def test_broken_validation_folder_shows_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_image_folder(tmp_path / "images", validation=True)
    rewrite(root, "validation", "1.png,1", "1.png,7")
    assert main(arguments(tmp_path, data__name="imagefolder", data__root=root, data__options="{}")) == 2
    assert "validation/metadata.csv, line 3: label 7 is out of range" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_classes_are_named_or_counted_in_train(tmp_path: Path) -> None:
    """A class that only train has counts; it is not looked at when classes are named."""
    root = make_image_folder(tmp_path / "images", validation=True)
    rewrite(root, "train", "5.png,1", "5.png,2")
    assert folder_splits(root).num_classes == 3
    config = DataConfig(name="imagefolder", root=str(root), options={"class_names": ["a", "b"]})
    splits = build_splits(config, 0)
    assert splits.class_names == ("a", "b")
    with pytest.raises(UserError, match=r"train/metadata\.csv, line 7: label 2 is out of range"):
        len(splits.train)


# ---- skeletons ---------------------------------------------------------------------------------------------------
def test_videos_of_one_recording_stay_together() -> None:
    """UCF101 names a recording v_CLASS_gNN: two classes of four recordings of three videos; a quarter is one each.

    Its tubes come along, so that video AP can select.
    """
    clips: dict[str, SkeletonClip] = {}
    truth = GroundTruth({}, {}, {}, [], [])
    generator = np.random.default_rng(0)
    for label, name in enumerate(("Diving", "Biking")):
        for group in range(1, 6):
            for number in range(3):
                video = f"{name}/v_{name}_g{group:02d}_c{number:02d}"
                points = generator.uniform(10, 90, (1, 20, 17, 2)).astype(np.float32)
                clips[video] = SkeletonClip(video, label, points, np.ones((1, 20, 17), np.float32), (240, 320))
                truth.tubes[video] = [Tube(video, label, 0, np.tile(np.float32([10, 10, 90, 90]), (20, 1)))]
                truth.frame_counts[video], truth.resolutions[video] = 20, (240, 320)
                (truth.test_videos if group == 5 else truth.train_videos).append(video)
    splits = hold_out(skeleton_splits(clips, truth, ("Diving", "Biking"), SkeletonOptions(frames=4)), 0.25, seed=0)
    validation = splits.evaluated("validation")
    assert isinstance(validation, SkeletonViews)
    held = {clip.name for clip in validation.source.clips}
    trained = set(names(splits.train))
    assert (len(held), len(trained)) == (6, 18)
    assert not {name[:-4] for name in held} & {name[:-4] for name in trained}
    assert set(validation.ground_truth.test_videos) == held
    assert isinstance(splits.test, SkeletonViews)
    assert splits.test.ground_truth.test_videos == truth.test_videos
    trained_views = splits.evaluated("train")
    assert isinstance(trained_views, SkeletonViews)
    assert set(trained_views.ground_truth.test_videos) == trained


def test_planted_actions_have_validation_videos_of_their_own() -> None:
    pytest.importorskip("pybullet_data", reason="planted actions need the motion clips of pybullet")
    options = {"train": 6, "validation": 6, "test": 6, "length": 15, "frames": 4}
    splits = build_splits(DataConfig(name="planted_actions", options=options), 0)
    shown = [set(names(splits.train))]
    for split in (splits.validation, splits.test):
        assert isinstance(split, SkeletonViews)
        shown.append({clip.name for clip in split.source.clips})
        assert set(split.ground_truth.test_videos) == shown[-1]
    assert [len(part) for part in shown] == [6, 6, 6]
    assert len(set.union(*shown)) == 18
    without = build_splits(DataConfig(name="planted_actions", options={**options, "validation": 0}), 0)
    assert without.selected_on == "test"


# ---- training ----------------------------------------------------------------------------------------------------
def test_a_run_selects_on_the_held_out_share(tmp_path: Path) -> None:
    """12 images are trained on, in 3 batches of 4; the 4 others are validation's."""
    root = make_image_folder(tmp_path / "images")
    words = arguments(tmp_path, data__name="imagefolder", data__root=root, data__options="{}", data__batch_size=4,
                      data__validation_share=0.25, train__epochs=1, evaluation__metrics="[]")  # fmt: skip
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["train"] * 3 + ["validation", "test", "test"]
    assert rows[3]["accuracy"] in (0, 25, 50, 75, 100)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["selected_on"] == "validation"
