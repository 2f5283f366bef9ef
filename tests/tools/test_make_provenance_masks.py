"""tools/make_provenance_masks.py: its files are the masks that training would make, and it goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from provscale.data.images.folder import FolderSplit
from provscale.synthesis.edited import Edited
from tools.make_provenance_masks import main


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """Five edits, the right half brighter by 90; the last has a mask of its own, the fourth is not edited."""
    folder = tmp_path / "edits"
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = ["file_name,label,source_file_name,mask_file_name"]
    for number in range(5):
        source = generator.integers(0, 160, (24, 24, 3), dtype=np.uint8)
        edit = source.copy()
        if number != 3:
            edit[:, 12:] += 90
        Image.fromarray(source).save(folder / f"source{number}.png")
        Image.fromarray(edit).save(folder / f"edit{number}.png")
        rows.append(f"edit{number}.png,0,source{number}.png,{'own.png' if number == 4 else ''}")
    own = np.zeros((24, 24), dtype=np.uint8)
    own[:5] = 255
    Image.fromarray(own).save(folder / "own.png")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def masks(folder: Path, key: str = "otsu") -> dict[str, Path]:
    return {path.name: path for path in sorted((folder / "provenance" / key).glob("*.png"))}


def test_files_are_the_masks_of_training(edits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {}
    for number in range(4):
        item = FolderSplit(edits, edited=True)[number]
        expected[f"edit{number}.png.png"] = Edited().undilated_mask(item).as_subclass(torch.Tensor)
    assert main(["--edits", str(edits)]) == 0
    printed = capsys.readouterr()
    assert "4 masks made, 1 there before; 0 say edited and 1 unedited everywhere" in printed.out
    assert "edit3.png: the mask says unedited everywhere" in printed.err.replace("\n", "")
    assert masks(edits).keys() == expected.keys()
    for name, path in masks(edits).items():
        found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(found, 255 * expected[name][0].numpy())


def test_started_again_it_makes_only_what_is_missing_or_old(edits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--edits", str(edits), "--workers", "2"]) == 0
    masks(edits)["edit0.png.png"].unlink()
    later = masks(edits)["edit1.png.png"].stat().st_mtime + 10
    os.utime(edits / "edit1.png", (later, later))
    before = {name: path.stat().st_mtime_ns for name, path in masks(edits).items()}
    capsys.readouterr()
    assert main(["--edits", str(edits)]) == 0
    assert "2 masks made, 3 there before" in capsys.readouterr().out
    after = {name: path.stat().st_mtime_ns for name, path in masks(edits).items()}
    assert {name for name in after if after[name] != before.get(name)} == {"edit0.png.png", "edit1.png.png"}


def test_every_image_that_cannot_be_used_is_named_and_the_others_are_done(
    edits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (edits / "source0.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((5, 5, 3), dtype=np.uint8)).save(edits / "source1.png")
    assert main(["--edits", str(edits)]) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("provscale: ")]
    assert "2 images have no mask" in line
    assert "source0.png: cannot be read as an image" in line
    assert "edit1.png: edited image has shape (3, 24, 24), its source (3, 5, 5)" in line
    assert set(masks(edits)) == {"edit2.png.png", "edit3.png.png"}


def test_mistakes_on_the_command_line(edits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--edits", str(edits), "--workers", "0"]) == 2
    assert "--workers: is 0, must be at least 1" in capsys.readouterr().err
    assert main(["--edits", str(edits / "nowhere")]) == 2
    assert "metadata.csv" in capsys.readouterr().err
