"""Data set `cub`: splits, boxes, transforms, the tool that prepares it, and every way in which it may be broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cub_folder import CLASSES, PER_CLASS, change, damage, make_cub
from networks import relative  # noqa: F401  (one thread)
from PIL import Image
from torchvision.transforms import v2

from provscale.config import DataConfig
from provscale.data import build_splits
from provscale.data.images.cub_metadata import read_split
from provscale.errors import UserError
from provscale.evaluation.maxboxacc import truncate_boxes
from provscale.randomness import seeded
from tools.prepare_cub import main as prepare_cub


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_cub(tmp_path / "CUB_200_2011")


def config(root: Path, **changes: object) -> DataConfig:
    return DataConfig("cub", str(root), image_size=56, **changes)  # type: ignore[arg-type]


def test_splits(root: Path) -> None:
    splits = build_splits(config(root), 0)
    assert splits.class_names == CLASSES
    assert splits.selected_on == "validation"
    assert splits.validation is not None
    for source, split in ((splits.train, "train"), (splits.validation, "val"), (splits.test, "test")):
        assert len(source) == 3 * PER_CLASS[split]
        assert [source.label(index) for index in range(len(source))] == sorted([0, 1, 2] * PER_CLASS[split])
    assert splits.train[0].annotations == {}, "training sees labels only"
    assert "box" in splits.evaluated("train")[0].annotations
    assert splits.best == "maxboxacc"


def test_boxes_follow_the_resize_as_the_convention_truncates(root: Path) -> None:
    """int(x * 56 / width), in integers (Choe et al.); the image is stretched to a square, nothing is cut off."""
    splits = build_splits(config(root), 0)
    records = read_split(root / "metadata" / "test")
    for index, record in enumerate(records):
        item = splits.evaluation_transform(splits.test[index])
        assert item.inputs.shape == (3, 56, 56)
        width, height = record.size
        scale = np.array([width, height, width, height])
        expected = np.array(record.boxes) * 56 // scale
        np.testing.assert_array_equal(truncate_boxes(item.annotations["box"].numpy(), (56, 56)), expected)


def test_training_crops_a_larger_square_and_flips(root: Path) -> None:
    """A crop of 56 of the image at 64 (224 of 256), flipped or not: found by comparing with all of them."""
    splits = build_splits(config(root), 0)
    whole = (
        v2.functional.resize(splits.train[2].inputs, [64, 64], antialias=True).as_subclass(torch.Tensor).float() / 255
    )
    mean, std = (torch.tensor(value)[:, None, None] for value in (splits.mean, splits.std))
    seen = set()
    for number in range(12):
        with seeded(number):
            crop = splits.train_transform(splits.train[2]).inputs * std + mean
        places = [
            (x, y, flip)
            for x in range(9)
            for y in range(9)
            for flip in (False, True)
            if torch.allclose(
                whole[:, y : y + 56, x : x + 56].flip(2) if flip else whole[:, y : y + 56, x : x + 56], crop, atol=1e-5
            )
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len({flip for *_, flip in seen}) == 2
    assert len(seen) > 6


def test_several_boxes_of_one_image(root: Path) -> None:
    """Rows of NaN fill up the images that have fewer."""
    change(root / "metadata/test/localization.txt", lambda text: text + "\n001.Albatross/test_1.jpg,1,2,30,40")
    splits = build_splits(config(root), 0)
    one, two = (splits.evaluation_transform(splits.test[index]).annotations["box"] for index in (0, 1))
    assert one.shape == two.shape == (2, 4)
    assert one[1].isnan().all()
    assert not two.isnan().any()


def test_weights_are_evaluated_without_training_images_or_cubv2(root: Path) -> None:
    for folder in ("CUBV2", "images/001.Albatross"):
        for path in (root / folder).rglob("*.jpg"):
            if not path.name.startswith("test"):
                path.unlink()
    splits = build_splits(config(root), 0)
    assert len(splits.test) == 9
    with pytest.raises(UserError, match=r"train_0\.jpg: does not exist, but .*image_ids\.txt, line 1"):
        len(splits.train)
    with pytest.raises(UserError, match=r"data\.options\.cubv2: .*validation_share"):
        len(splits.evaluated("validation"))


def test_without_cubv2_a_share_of_train_is_held_out(root: Path) -> None:
    splits = build_splits(config(root, validation_share=0.25), 0)
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation)) == (9, 3)
    assert "box" in splits.validation[0].annotations
    assert build_splits(config(root, validation_share=0.0), 0).selected_on == "test"


@pytest.mark.parametrize("place", ["../CUBV2", "images", "elsewhere"])
def test_cubv2_is_found(root: Path, place: str) -> None:
    if place == "images":  # its tar, unpacked over CUB's own class folders
        for path in list((root / "CUBV2").rglob("*.jpg")):
            path.rename(root / "images" / path.relative_to(root / "CUBV2"))
    else:
        (root / "CUBV2").rename(root / place)
    options = {"cubv2": str(root / place)} if place == "elsewhere" else {}
    splits = build_splits(config(root, options=options), 0)
    assert len(splits.evaluated("validation")) == 6


def test_segmentations(root: Path) -> None:
    for record in read_split(root / "metadata" / "test"):
        path = (root / "segmentations" / record.name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.zeros(record.size[::-1], dtype=np.uint8)
        levels[:10], levels[10:20] = 204, 102  # four and two of five annotators
        Image.fromarray(levels).save(path)
    splits = build_splits(config(root, options={"segmentations": str(root / "segmentations")}), 0)
    mask = splits.test[0].annotations["object_mask"]
    assert mask.shape == (1, 44, 60)
    assert torch.equal(mask[0].any(dim=1), torch.arange(44) < 10)
    assert splits.evaluation_transform(splits.test[0]).annotations["object_mask"].shape == (1, 56, 56)


def test_centre_crop_of_sats_evaluator(root: Path) -> None:
    """56 of 64 pixels: boxes are int(clip(x * 64 / width - 4, 0, 56)) of SAT's code, up to the last pixel."""
    splits = build_splits(config(root, options={"evaluation": "centre_crop"}), 0)
    for index, record in enumerate(read_split(root / "metadata" / "test")):
        item = splits.evaluation_transform(splits.test[index])
        assert item.inputs.shape == (3, 56, 56)
        width, height = record.size
        x0, y0, x1, y1 = record.boxes[0]
        expected = [x0 * 64 / width - 4, y0 * 64 / height - 4, x1 * 64 / width - 4, y1 * 64 / height - 4]
        found = truncate_boxes(item.annotations["box"].numpy(), (56, 56))[0]
        np.testing.assert_array_equal(found, np.clip(expected, 0, 56).astype(int))


# ---- what is wrong -----------------------------------------------------------------------------------------------
def test_check_lists_all_faults_at_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = damage(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert prepare_cub([str(root), "--check", "--decode"]) == 2
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    for what, parts in expected.items():
        assert any(all(part in line for part in parts) for line in lines), f"{what} is not reported: {parts}"
    faults = [line for line in lines if "images listed" not in line]
    assert len(faults) == len(set(faults)) == 15, "what follows from one of them is listed too"
    assert shown.err.count("\n") == 1
    assert "15 faults" in shown.err
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_training_names_the_first_fault(root: Path) -> None:
    """Each alone, when the data set is built or the item is loaded: one line that names file and line."""
    damage(root)
    with pytest.raises(UserError, match=r"image_ids\.txt, line 13: .* listed twice, before in .*line 5"):
        build_splits(config(root), 0)


@pytest.mark.parametrize(
    ("file", "old", "new", "parts"),
    [
        ("train/localization.txt", "ss/train_1.jpg,", "ss/train_1.jpg,9", "localization.txt, line 2: box"),
        ("train/image_sizes.txt", "ss/train_0.jpg,60,44", "ss/train_0.jpg,0,44", "line 1: the size is 0 x 44"),
        ("train/class_labels.txt", "001.Albatross/train_0.jpg,0\n", "", "has no line for '001.Albatross/train_0.jpg'"),
        ("test/class_labels.txt", "002.Auklet/test_0.jpg,1", "002.Auklet/test_0.jpg,-1", "line 4: label is -1"),
        ("test/image_ids.txt", "001.Albatross/test_0", "001.Albatross/other", "'001.Albatross/test_0.jpg' is not in"),
        ("train/class_labels.txt", "003.Blackbird/train_3.jpg,2", "003.Blackbird/train_3.jpg,5",
         "no training image has label 3, but some have 5"),
        ("test/class_labels.txt", "002.Auklet/test_0.jpg,1", "002.Auklet/test_0.jpg,3", "(test) is no training label"),
    ],
)  # fmt: skip
def test_one_line_of_metadata(root: Path, file: str, old: str, new: str, parts: str) -> None:
    change(root / "metadata" / file, lambda text: text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        build_splits(config(root), 0)
    assert parts in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("first", "other"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_an_image_of_two_splits(root: Path, first: str, other: str) -> None:
    """In all lists of both; the message names both places."""
    name = f"001.Albatross/{first}_1.jpg"
    for file in ("class_labels", "localization", "image_sizes", "image_ids"):
        (line,) = [line for line in (root / f"metadata/{first}/{file}.txt").read_text().splitlines() if name in line]
        change(root / f"metadata/{other}/{file}.txt", lambda text, line=line: f"{text}\n{line}")  # type: ignore[misc]
    with pytest.raises(UserError) as caught:
        len(build_splits(config(root), 0).evaluated("validation"))
    message = str(caught.value)
    assert "\n" not in message
    assert f"'{name}' of {other} is also in {first}" in message
    assert f"{first}/image_ids.txt, line 2)" in message
    assert f"{other}/image_ids.txt, line " in message


def test_files_that_are_no_images_or_other_ones(root: Path) -> None:
    splits = build_splits(config(root), 0)
    path = root / "images" / "001.Albatross" / "train_0.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train_0\.jpg: cannot be read as an image"):
        splits.train[0]
    Image.fromarray(np.zeros((10, 12, 3), dtype=np.uint8)).save(path)
    with pytest.raises(UserError, match=r"train_0\.jpg: is 12 x 10 pixels, .*line 1 goes with a size of 60 x 44"):
        splits.train[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"root": None}, r"data\.root: None"), ({"options": {"cubV2": "."}}, "cubV2.*did you mean")],
)
def test_wrong_config(root: Path, changes: dict[str, object], message: str) -> None:
    given = config(root)
    for key, value in changes.items():
        setattr(given, key, value)
    with pytest.raises(UserError, match=message):
        build_splits(given, 0)


# ---- the tool ----------------------------------------------------------------------------------------------------
def test_metadata_is_made_of_cubs_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same lists as the published ones, up to their order and the newline at the end."""
    made, expected = make_cub(tmp_path / "a", metadata=False), make_cub(tmp_path / "b")
    assert prepare_cub([str(made)]) == 0
    for split in ("train", "test"):
        for path in (expected / "metadata" / split).iterdir():
            found = (made / "metadata" / split / path.name).read_text()
            assert sorted(found.splitlines()) == sorted(path.read_text().splitlines()), path
    assert "complete; train with --data.name cub" in capsys.readouterr().out
    stamps = {path: path.stat().st_mtime_ns for path in made.rglob("*.txt")}
    assert prepare_cub([str(made)]) == 0
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*.txt")} == stamps


@pytest.mark.parametrize("missing", ["bounding_boxes.txt", "images/002.Auklet/train_1.jpg"])
def test_nothing_is_half_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    root = make_cub(tmp_path / "cub", metadata=False)
    (root / missing).unlink()
    assert prepare_cub([str(root)]) == 2
    error = capsys.readouterr().err
    assert f"{root / missing}: does not exist" in error
    assert "CUB_200_2011.tgz" in error
    assert not (root / "metadata" / "train").exists()
    assert not (root / "metadata" / "test").exists()
