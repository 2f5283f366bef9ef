"""Data sets `waterbirds`, `iwildcam` and `cub_classification`: splits, constructions, edits and a training."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from listed_folders import MAKE, build, make_cub_classification, make_iwildcam, make_waterbirds
from PIL import Image
from tiny_runs import arguments, rows

from provscale.config import DataConfig
from provscale.data import build_splits
from provscale.data.images.iwildcam import WithoutCaptions
from provscale.data.splits import item_id, training_source
from provscale.errors import UserError
from provscale.train import main


def ids(source: object) -> list[str]:
    return [item_id(source, index) for index in range(len(source))]  # type: ignore[arg-type]


def test_waterbirds_alia(tmp_path: Path) -> None:
    """Fitting images are 0 to 7 (landbirds) and 12 to 19 (waterbirds), even numbers of species a."""
    splits = build("waterbirds", make_waterbirds(tmp_path / "w"))
    assert splits.validation is not None
    assert ids(splits.train) == ["a/0.png", "a/12.png", "b/1.png", "b/13.png"]
    assert ids(splits.validation) == ["a/20.png", "b/23.png"]
    assert [splits.test[index].annotations["group"] for index in range(4)] == [0, 1, 2, 3]
    assert splits.train[0].annotations == {}
    assert splits.training_groups == (8, 2, 2, 8)
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "w" / "b" / "1.png")).transpose(2, 0, 1).copy())
    assert torch.equal(splits.train[2].inputs, expected)
    assert (splits.best, splits.extra_counts) == ("accuracy", (3, 3))
    extra = build("waterbirds", tmp_path / "w", extra=True)
    assert ids(extra.train)[4:] == ["b/21.png", "a/22.png", "a/8.png", "b/9.png", "a/10.png", "b/11.png"]


def test_waterbirds_group_dro(tmp_path: Path) -> None:
    splits = build("waterbirds", make_waterbirds(tmp_path / "w"), construction="group_dro")
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (20, 4, 4)
    assert splits.best == "worst_group"
    with pytest.raises(UserError, match=r"data\.options\.extra"):
        build("waterbirds", tmp_path / "w", construction="group_dro", extra=True)


@pytest.mark.parametrize("subset", ["alia", "wilds"])
def test_iwildcam(tmp_path: Path, subset: str) -> None:
    splits = build("iwildcam", make_iwildcam(tmp_path / "i"), subset=subset)
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (14, 7, 7)
    assert [splits.train.label(index) for index in range(14)] == [*range(7), *range(7)]
    places = (3, 5, 7, 9) if subset == "alia" else (3, 5, 7)
    assert splits.group_names == tuple(f"location_{place}" for place in places)
    assert splits.test[0].annotations["group"] == 2
    assert splits.mean == pytest.approx((0, 0, 0))
    assert splits.extra_counts == ((2, 1, 1, 1, 1, 1, 1) if subset == "alia" else None)
    assert splits.best == "macro_f1"


def test_iwildcam_extra_and_normalisation(tmp_path: Path) -> None:
    splits = build("iwildcam", make_iwildcam(tmp_path / "i"), extra=True, normalise=True)
    assert len(splits.train) == 14 + 8
    assert splits.mean == pytest.approx((0.485, 0.456, 0.406))


def test_cub_classification(tmp_path: Path) -> None:
    """The last 5 of 8 training images of each class are extra; the validation split is CUBv2, or by name test."""
    root = make_cub_classification(tmp_path / "c")
    splits = build("cub_classification", root)
    assert splits.validation is not None
    assert ids(splits.train) == [f"{name}/train_{n}.jpg" for name in splits.class_names for n in range(3)]
    assert ids(splits.validation) == [f"{name}/val_{n}.jpg" for name in splits.class_names for n in range(2)]
    assert [splits.validation.label(index) for index in range(6)] == [0, 0, 1, 1, 2, 2]
    assert (len(splits.test), splits.extra_counts, splits.group_names, splits.best) == (9, (5, 5, 5), (), "accuracy")
    assert splits.test[0].annotations == {}
    assert (splits.mean, splits.std) == (
        pytest.approx((0.485, 0.456, 0.406)), pytest.approx((0.229, 0.224, 0.225)))  # fmt: skip
    extra = build("cub_classification", root, extra=True)
    assert ids(extra.train)[9:14] == [f"001.Albatross/train_{n}.jpg" for n in range(3, 8)]
    assert len(extra.train) == 24
    config = DataConfig("cub_classification", str(root), image_size=28, validation_share=0)
    assert build_splits(config, 0).selected_on == "test"
    shutil.rmtree(root / "CUBV2")
    assert len(build("cub_classification", root).test) == 9, "test needs no CUBv2"
    with pytest.raises(UserError, match=r"data\.options\.cubv2"):
        len(build("cub_classification", root).validation)  # type: ignore[arg-type]


def test_captions_are_cut_off() -> None:
    """Of an image of 448 rows, those before 10 and from 410 on leave no trace."""
    image = torch.zeros(3, 448, 448)
    image[:, :8], image[:, 414:] = 1, 1
    cut = WithoutCaptions(224)(image)
    assert cut.shape == (3, 224, 224)
    assert cut.abs().max() == 0
    image[:, 200:210] = 1
    assert WithoutCaptions(224)(image).max() == pytest.approx(1)


def test_added_edits_have_the_classes_of_extra_real_images(tmp_path: Path) -> None:
    splits = build("iwildcam", make_iwildcam(tmp_path / "i"))
    added = training_source(splits, 8, seed=3)
    labels = Counter(added.label(index) for index in range(len(splits.train), len(added)))
    assert [labels[label] for label in range(7)] == [2, 1, 1, 1, 1, 1, 1]
    assert all(added[index].is_synthetic for index in range(14, 22))
    with pytest.raises(UserError, match=r"synthesis\.added: is 14, of which 3 are to be of class background"):
        training_source(splits, 14, seed=3)
    anyhow = training_source(build("iwildcam", tmp_path / "i", match_extra=False), 14, seed=3)
    assert len(anyhow) == 28


@pytest.mark.parametrize(
    ("name", "arm"),
    [("waterbirds", "guided"), ("waterbirds", "real"), ("iwildcam", "guided"), ("cub_classification", "real")],
)
def test_training(tmp_path: Path, name: str, arm: str) -> None:
    """Two steps; only edits are guided, and the real arm trains on the extra images instead."""
    own = (
        {"synthesis.name": "edited", "synthesis.added": 4, "data.options": "{}"}
        if arm == "guided"
        else {"synthesis.name": "none", "guidance.alpha": 0, "data.options": "{extra: true}"}
    )
    metrics = "[group_accuracy, macro_f1]"
    words = arguments(
        tmp_path, arm, data__name=name, data__root=MAKE[name](tmp_path / name), data__workers=0, data__batch_size=4,
        train__max_steps=2, evaluation__metrics=metrics, model__options="{}", **own,
    )  # fmt: skip
    assert main(words) == 0
    found = rows(tmp_path / arm)
    steps = [row for row in found if row["kind"] == "train"]
    assert len(steps) == 2
    assert any(row.get("loss_guidance", 0) > 0 for row in steps) == (arm == "guided")
    test = next(row for row in found if row["kind"] == "test")
    assert {"accuracy", "class_balanced", "macro_f1", "macro_recall"} <= test.keys()
    assert ("worst_group" in test) == (name != "cub_classification")
    assert ("adjusted_accuracy" in test) == (name == "waterbirds")


def test_edits_without_guidance_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 9 edits one is its source and another has a mask of zeros: two of every epoch, and of the run."""
    root = make_cub_classification(tmp_path / "c")
    shutil.copy(root / "images/001.Albatross/train_1.jpg", root / "edits/1.png")
    width, height = Image.open(root / "edits/2.png").size
    Image.fromarray(np.zeros((height, width), dtype=np.uint8)).save(root / "edits/mask2.png")
    table = root / "edits/metadata.csv"
    header, *lines = table.read_text().splitlines()
    masked = [line + (",mask2.png" if line.startswith("2.png") else ",") for line in lines]
    table.write_text("\n".join([header + ",mask_file_name", *masked]) + "\n")
    words = arguments(
        tmp_path, data__name="cub_classification", data__root=root, data__workers=0, data__batch_size=6,
        data__options="{}", data__validation_share=0, model__options="{}", synthesis__name="edited",
    )  # fmt: skip
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().err.split())  # the console wraps lines
    assert [printed.count(f"epoch {epoch}: 2 edits have a mask of one value") for epoch in (1, 2)] == [1, 1]
    assert "1.png: its provenance mask says unedited everywhere" in printed
    assert "2.png: its provenance mask says edited everywhere" in printed
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unguided_edits"] == 2
    steps = [row for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert len(steps) == 2 * 3, "9 real images and 9 edits, none of them left out"
