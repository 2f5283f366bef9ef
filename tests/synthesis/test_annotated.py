"""Training images guided by object masks that the data set gives, real ones too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from folders import SIDE, make_image_folder
from PIL import Image

from provscale.build import TrainingData, build_data, build_training_data
from provscale.command_line import parse
from provscale.errors import UserError

DIGITS = ["--data.name=digits", "--data.image_size=32", "--data.options={train: 6, edits: 4, validation: 4, test: 4}"]


def training_data(*words: str) -> TrainingData:
    config = parse(["--synthesis.name=annotated", "--guidance.alpha=0.1", *words])
    return build_training_data(config, build_data(config))


def test_all_training_images_of_a_data_set_with_object_masks_are_guided() -> None:
    """6 real images and 4 edits; M is the digit in all of them."""
    data = training_data(*DIGITS)
    assert len(data.items) == 10
    for index in range(10):
        item, original = data.items[0, index][1], data.items.source[index]
        assert item.is_synthetic
        assert torch.equal(item.provenance_mask, original.annotations["object_mask"].float())
        assert 0 < item.provenance_mask.mean() < 0.5


def test_an_image_folder_guides_by_the_masks_of_its_training_images(tmp_path: Path) -> None:
    """Real images by their object masks (here: columns from `index` on), edits by their provenance."""
    root = make_image_folder(tmp_path / "data")
    lines = ["file_name,label,object_mask_file_name"]
    for index in range(16):
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        mask[:, index:] = 255
        Image.fromarray(mask).save(root / "train" / f"object{index}.png")
        lines.append(f"{index}.png,{index % 2},object{index}.png")
    (root / "train" / "metadata.csv").write_text("\n".join(lines) + "\n")
    words = ["--data.name=imagefolder", f"--data.root={root}", f"--data.image_size={SIDE}"]
    words.append("--data.options={crop: false}")
    for added, size in (("null", 24), ("0", 16)):
        data = training_data(*words, f"--synthesis.added={added}")
        items = [data.items[0, index][1] for index in range(len(data.items))]
        assert len(items) == size
        assert [bool(item.is_synthetic) for item in items] == [index != 0 for index in range(size)]  # 0: 1 everywhere
        for index in range(1, 16):
            expected = (torch.arange(SIDE) >= index).float().expand(1, SIDE, SIDE)
            assert torch.equal(items[index].provenance_mask, expected)
    stored = Image.open(root / "edits" / "mask1.png")
    assert torch.equal(training_data(*words).items[0, 17][1].provenance_mask[0], torch.tensor(np.array(stored)) / 255)


def test_a_data_set_without_edits_needs_none_and_one_without_masks_is_refused(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "data")
    words = ["--data.name=imagefolder", f"--data.root={root}", f"--data.image_size={SIDE}"]
    with pytest.raises(UserError, match=r"synthesis\.name: annotated needs an object mask .*train/0\.png; add them"):
        training_data(*words)
    assert len(training_data(*DIGITS, "--data.options.textures=[wood]").items) == 6
