"""The data set `imagefolder`: from files to a trained network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import SIDE, make_image_folder
from PIL import Image
from tiny_runs import arguments, rows

from provscale.config import DataConfig
from provscale.data import build_splits
from provscale.data.images.folder import IMAGENET_MEAN, IMAGENET_STD
from provscale.data.splits import DataSplits
from provscale.train import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")


def build(root: Path, **options: object) -> DataSplits:
    return build_splits(DataConfig(name="imagefolder", root=str(root), image_size=16, options=dict(options)), 0)


def pixels(path: Path) -> torch.Tensor:
    """uint8 [C, H, W] or [H, W], read independently."""
    content = np.array(Image.open(path))
    return torch.from_numpy(content.transpose(2, 0, 1) if content.ndim == 3 else content)


def test_items_are_what_the_files_hold(root: Path) -> None:
    splits = build(root)
    assert (len(splits.train), len(splits.test)) == (16, 6)
    assert splits.edits is not None
    item = splits.train[3]
    assert torch.equal(item.inputs, pixels(root / "train" / "3.png"))
    assert (item.target, item.is_synthetic, item.annotations) == (1, False, {})
    test = splits.test[5]
    assert test.annotations["group"] == 2
    assert test.annotations["box"].tolist() == [[2.0, 3.0, 20.0, 21.5]]
    assert torch.equal(test.annotations["object_mask"][0], pixels(root / "test" / "object5.png") > 0)
    masked, sourced = splits.edits[1], splits.edits[2]
    assert masked.is_synthetic
    assert masked.provenance_mask is not None
    assert torch.equal(masked.provenance_mask[0] * 255, pixels(root / "edits" / "mask1.png").float())
    assert sourced.provenance_mask is None
    assert callable(sourced.source)
    assert torch.equal(sourced.source(), pixels(root / "train" / "2.png"))


def test_names_metrics_and_normalisation(root: Path) -> None:
    splits = build(root)
    assert splits.class_names == ("0", "1")
    assert splits.group_names == ("0", "1", "2")
    assert (splits.metrics, splits.best) == (("group_accuracy", "maxboxacc"), "worst_group")
    assert build(root, class_names=["a", "b", "c"]).num_classes == 3
    item = build(root, crop=False).train_transform(build(root).train[0])
    assert item.inputs.shape == (3, 16, 16)
    mean = pixels(root / "train" / "0.png").float().mean(dim=(1, 2)) / 255
    expected = (mean - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    # Antialiased resizing weights the pixels at the border a little less: means agree to a few percent.
    torch.testing.assert_close(item.inputs.mean(dim=(1, 2)), expected, atol=0.1, rtol=0)


def test_masks_move_with_their_images(root: Path) -> None:
    """A mask equal to the image's own red channel (above one half) still is after a random crop and flip."""
    path = root / "edits" / "1.png"
    red = np.zeros((SIDE, SIDE), dtype=np.uint8)
    red[5:15, 3:11] = 255
    Image.fromarray(np.stack([red] * 3, axis=2)).save(path)
    Image.fromarray(red).save(root / "edits" / "mask1.png")
    splits = build(root)
    assert splits.edits is not None
    for seed in range(5):
        torch.manual_seed(seed)
        item = splits.train_transform(splits.edits[1])
        shown = item.inputs[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
        assert item.provenance_mask is not None
        edge = (shown > 0.05) & (shown < 0.95)  # interpolation blurs the image's edge, the mask stays binary
        assert torch.equal((shown > 0.5)[~edge], (item.provenance_mask[0] > 0.5)[~edge])


def test_binary_and_soft_masks(root: Path) -> None:
    values = np.zeros((SIDE, SIDE), dtype=np.uint8)
    values[:4] = 1
    Image.fromarray(values).save(root / "edits" / "mask1.png")
    soft = values * 128
    soft[-1] = 255
    Image.fromarray(soft).save(root / "edits" / "mask3.png")
    edits = build(root).edits
    assert edits is not None
    binary, shares = edits[1].provenance_mask, edits[3].provenance_mask
    assert binary is not None
    assert shares is not None
    assert binary.unique().tolist() == [0.0, 1.0]
    assert shares.unique().tolist() == pytest.approx([0.0, 128 / 255, 1.0])


def test_an_epoch_from_files_to_report(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """16 images and 8 edits in batches of 8: 3 guided steps; no network, nothing in the user's cache, no noise."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = arguments(tmp_path, data__name="imagefolder", data__root=root, synthesis__name="edited", train__epochs=1,
                      data__options="{}", evaluation__metrics="[]", tracking__images=2)  # fmt: skip
    assert main(words) == 0
    training = [row for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert len(training) == 3
    assert any(row["loss_guidance"] > 0 for row in training)
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["last"]
    assert {"accuracy", "worst_group", "maxboxacc"} <= metrics.keys()
    assert (tmp_path / "run" / "pictures.npz").exists()
    assert not (tmp_path / "home" / ".cache" / "huggingface").exists()
    output = capfd.readouterr()
    assert output.out == ""
    assert "Generating" not in output.err
