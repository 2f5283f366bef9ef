"""Waterbirds, iWildCam and CUB with edits on disk, small and random, in the layouts their readers expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cub_folder import CLASSES as SPECIES
from cub_folder import make_cub
from PIL import Image

from provscale.config import DataConfig
from provscale.data import build_splits
from provscale.data.splits import DataSplits

SIDE = 24
WATERBIRDS_TRAIN = [(label, place) for label in (0, 1) for place in (0, 1) for _ in range(8 if label == place else 2)]
"""y and place: 8 landbirds on land, 2 on water, 2 waterbirds on land, 8 on water."""
EVERY_GROUP = [(0, 0), (0, 1), (1, 0), (1, 1)]
YS = (0, 24, 32, 36, 48, 49, 52)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


def make_edits(root: Path, rows: list[tuple[int, str]]) -> None:
    """One edit of each (label, source below root): the source with its upper left quarter blackened."""
    lines = ["file_name,label,source_file_name"]
    (root / "edits").mkdir()
    for number, (label, source) in enumerate(rows):
        pixels = np.array(Image.open(root / source))
        pixels[: SIDE // 2, : SIDE // 2] = 0
        Image.fromarray(pixels).save(root / "edits" / f"{number}.png")
        lines.append(f"{number}.png,{label},../{source}")
    (root / "edits" / "metadata.csv").write_text("\n".join(lines) + "\n")


def make_waterbirds(root: Path) -> Path:
    """20 training images of the species a and b in turns, one validation and one test image of every group, and an edit
    of each training image whose place fits its bird."""
    lines, sources = ["img_id,img_filename,y,split,place,place_filename"], []
    numbered = [(0, *row) for row in WATERBIRDS_TRAIN] + [(split, *row) for split in (1, 2) for row in EVERY_GROUP]
    for number, (split, label, place) in enumerate(numbered):
        name = f"{'ab'[number % 2]}/{number}.png"
        picture(root / name, number)
        lines.append(f"{number},{name},{label},{split},{place},p.jpg")
        if split == 0 and label == place:
            sources.append((label, name))
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    make_edits(root, sources)
    return root


def make_iwildcam(root: Path) -> Path:
    """Each class twice in train and once elsewhere, at locations 3 (train), 5 (val), 7 (test), 9 (extra: one more
    background); an edit of every training image. metadata.csv lists the same images, and one of another class."""
    columns, number = "split,location_remapped,y,filename,image_id", 0
    everything, sources = [columns], []
    for file, split, place, ys in (
        ("train", "train", 3, YS * 2), ("val", "val", 5, YS), ("test", "test", 7, YS), ("train_extra", "", 9, (*YS, 0)),
    ):  # fmt: skip
        lines = [columns]
        for y in ys:
            picture(root / "train" / f"{number}.png", number)
            lines.append(f"{split},{place},{y},{number}.png,id{number}")
            if file == "train":
                sources.append((YS.index(y), f"train/{number}.png"))
            number += 1
        (root / f"{file}_subset.csv").write_text("\n".join(lines) + "\n")
        everything += lines[1:] if split else []
    everything.append("train,3,1,other.png,idother")
    (root / "metadata.csv").write_text("\n".join(everything) + "\n")
    make_edits(root, sources)
    return root


def make_cub_classification(root: Path) -> Path:
    """Of 3 classes 8 training images, of which the last 5 are extra ones, 2 of CUBv2 and 3 test images; an edit of
    every training image that is not extra."""
    make_cub(root, metadata=False, train=8)
    names = [(label, f"images/{species}/train_{n}.jpg") for label, species in enumerate(SPECIES) for n in range(3)]
    make_edits(root, names)
    return root


MAKE = {
    "waterbirds": make_waterbirds,
    "iwildcam": make_iwildcam,
    "cub_classification": make_cub_classification,
}
FIRST = {"waterbirds": "a/0.png", "iwildcam": "train/0.png", "cub_classification": "images/001.Albatross/train_0.jpg"}
"""A training image."""
TABLE = {"waterbirds": "metadata.csv", "iwildcam": "train_subset.csv", "cub_classification": "images.txt"}


def build(name: str, root: Path, **options: object) -> DataSplits:
    return build_splits(DataConfig(name=name, root=str(root), image_size=28, options=dict(options)), 0)
