"""The loader's benchmark: the work is equal, the clock counts every process, and the files are written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from provscale.data.images.folder import IMAGENET_MEAN, IMAGENET_STD

COUNT, SIZE, BATCH = 8, 64, 4


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    from tools.benchmark import loader

    return loader


@pytest.fixture(scope="module")
def root(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    tool.make_images(folder, COUNT)
    return folder


def test_images_are_as_large_as_those_of_cub(root: Path) -> None:
    """500 x 375 pixels and some tens of kilobytes: a smooth or a noisy image would be decoded in another time."""
    files = sorted((root / "train").rglob("*.jpg"))
    assert len(files) == COUNT
    assert {Image.open(path).size for path in files} == {(500, 375)}
    assert 20_000 < np.mean([path.stat().st_size for path in files]) < 150_000
    assert len({path.read_bytes() for path in files}) == COUNT


def test_edits_and_masks_are_right(root: Path) -> None:
    """Where the mask is 255 the edit equals its source but for JPEG's losses; where it is 0, a patch covers it."""
    for number in range(COUNT):
        names = (f"train/{number * 4 // COUNT}/{number:04d}.jpg", f"edits/{number:04d}.jpg")
        source, edited = (np.array(Image.open(root / name)).astype(int) for name in names)
        kept = np.array(Image.open(root / f"masked/{number:04d}.png")) == 255
        assert 0.7 < kept.mean() < 0.95
        assert abs(edited - source)[kept].mean() < 4
        assert edited[~kept].std(axis=0).max() < 10 < abs(edited - source)[~kept].mean()


@pytest.mark.parametrize("prefetcher", [False, True])
def test_both_loaders_give_the_same_evaluation_pixels(tool: ModuleType, root: Path, prefetcher: bool) -> None:
    """Same files in the same order; Pillow's and PyTorch's resizing round to within one of 255."""
    assert tool.compare_pixels(root, SIZE, BATCH) <= 1.01
    ours = list(tool.our_batches(root, SIZE, BATCH, 0, False, 1))
    theirs = list(tool.timm_batches(root, SIZE, BATCH, 0, False, 1, prefetcher))
    assert len(ours) == len(theirs) == COUNT // BATCH
    for sample, (inputs, targets) in zip(ours, theirs, strict=True):
        assert (sample.inputs.dtype, sample.inputs.shape) == (inputs.dtype, inputs.shape)
        assert sample.inputs.is_contiguous()
        assert torch.equal(sample.targets[:, 0], targets)
        levels = (sample.inputs - inputs) * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
        assert levels.abs().max() <= 1.01
        assert levels.abs().mean() < 0.1


def test_training_transforms_have_the_same_statistics(tool: ModuleType, root: Path) -> None:
    """Crops are each loader's own: over 24 crops of every image, mean and deviation of the pixels agree."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.manual_seed(0)
    ours = torch.cat([sample.inputs for sample in tool.our_batches(root, SIZE, BATCH, 0, True, 24)])
    theirs = torch.cat([inputs for inputs, _ in tool.timm_batches(root, SIZE, BATCH, 0, True, 24, False)])
    assert ours.shape == theirs.shape == (24 * COUNT, 3, SIZE, SIZE)
    found = [(batch * deviation + mean) for batch in (ours, theirs)]
    # Standard error of the mean of 192 crops with a deviation between crops of about 0.15: 0.011; two of them.
    assert abs(float(found[0].mean() - found[1].mean())) < 0.05
    sharpness = [float(batch.diff(dim=-1).abs().mean()) for batch in found]
    assert sharpness[0] == pytest.approx(sharpness[1], rel=0.1)


def test_time_of_processes_that_have_ended_counts(tool: ModuleType) -> None:
    """A child that computes for half a second of its own CPU time."""
    before = tool.cpu_seconds()
    work = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    assert 0.45 < tool.cpu_seconds() - before < 1.5


def test_a_run_writes_json_table_and_document(tool: ModuleType, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    document, out = tmp_path / "performance.md", tmp_path / "made" / "loader.json"
    document.write_text("before\n<!-- loader -->\nold\n<!-- /loader -->\nafter\n")
    words = ["--images", "8", "--batch", "4", "--size", "32", "--workers", "0", "--epochs", "1", "--rounds", "2"]
    assert tool.main([*words, "--out", str(out), "--doc", str(document)]) == 0
    content: dict[str, Any] = json.loads(out.read_text())
    cases = {(row["case"], row["workers"], row["loader"]) for row in content["rows"]}
    loaders = ("provscale", "timm", "timm, prefetcher")
    assert {(case, 0, name) for case in ("training", "evaluation") for name in loaders} <= cases
    assert ("kinds", 0, "edited image, mask file") in cases
    assert all(0 < row[clock]["low"] <= row[clock]["median"] <= row[clock]["high"] for row in content["rows"]
               for clock in ("cpu", "wall"))  # fmt: skip
    assert content["about"]["pixel_difference"] <= 1.01
    text = document.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| training | 0 |" in text
    assert "| training | 0 |" in capsys.readouterr().out


def test_mistakes_are_one_line(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--images", "10", "--batch", "4"]) == 2
    error = capsys.readouterr().err
    assert "--images: is 10, must be a multiple of --batch 4" in error
    assert error.count("\n") == 1
