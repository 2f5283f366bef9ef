"""Masks on file: what is written is what the loader uses, and a file older than its image is not used."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from provscale.errors import UserError
from provscale.sample import Item
from provscale.synthesis import Edited
from provscale.synthesis.provenance.mask_files import mask_file, read_mask_file, write_mask_file


@pytest.fixture
def edit(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "7.png"
    path.parent.mkdir()
    Image.fromarray(np.zeros((9, 11, 3), np.uint8)).save(path)
    return path


def halves() -> torch.Tensor:
    mask = torch.zeros(1, 9, 11, dtype=torch.uint8)
    mask[:, :4] = 1
    return mask


def test_written_and_read(edit: Path) -> None:
    write_mask_file(edit, "refined", halves())
    assert mask_file(edit, "refined") == edit.parent / "provenance" / "refined" / "7.png.png"
    found = read_mask_file(edit, "refined")
    assert found is not None
    assert torch.equal(found, halves())
    assert read_mask_file(edit, "otsu") is None


def test_an_older_file_is_not_used(edit: Path) -> None:
    write_mask_file(edit, "otsu", halves())
    os.utime(mask_file(edit, "otsu"), (1, 1))
    assert read_mask_file(edit, "otsu") is None


def test_the_loader_takes_the_file_of_its_own_method(edit: Path) -> None:
    def item() -> Item:
        return Item(tv_tensors.Image(torch.zeros(3, 9, 11, dtype=torch.uint8)), 0, str(edit), is_synthetic=True)

    write_mask_file(edit, "otsu-lab", halves())
    mask = Edited(space="lab").prepare(item()).provenance_mask
    assert mask is not None
    assert torch.equal(mask, halves())
    with pytest.raises(UserError, match="needs a mask or its source"):
        Edited().prepare(item())


def test_a_damaged_file_is_named(edit: Path) -> None:
    write_mask_file(edit, "otsu", halves())
    mask_file(edit, "otsu").write_text("no image")
    with pytest.raises(UserError, match=r"7\.png\.png: cannot be read as an image"):
        read_mask_file(edit, "otsu")
