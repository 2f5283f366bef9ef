"""Image folders on disk, small and random, for the data set `imagefolder`; and ways to break them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 24


def make_image_folder(root: Path, validation: bool = False) -> Path:
    """root/train (16 images, 2 classes), root/test (6, with group, box and object mask), root/edits (8), and, if asked
    for, root/validation (6, as test)."""
    generator = np.random.default_rng(0)

    def image(path: Path) -> None:
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)

    def mask(path: Path) -> None:
        Image.fromarray(generator.integers(0, 2, (SIDE, SIDE), dtype=np.uint8) * 255).save(path)

    annotated = ("validation", "test") if validation else ("test",)
    for split, number in (("train", 16), *((name, 6) for name in annotated), ("edits", 8)):
        (root / split).mkdir(parents=True)
        lines = {
            "train": ["file_name,label"],
            "edits": ["file_name,label,mask_file_name,source_file_name"],
        }.get(split, ["file_name,label,group,object_mask_file_name,x0,y0,x1,y1"])
        for index in range(number):
            image(root / split / f"{index}.png")
            line = f"{index}.png,{index % 2}"
            if split in annotated:
                mask(root / split / f"object{index}.png")
                line += f",{index % 3},object{index}.png,2,3,20,21.5"
            if split == "edits":  # half of them with a mask, half with their source, which lies outside this folder
                mask(root / split / f"mask{index}.png")
                line += f",mask{index}.png," if index % 2 else f",,../train/{index}.png"
            lines.append(line)
        (root / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def rewrite(root: Path, split: str, old: str, new: str) -> None:
    path = root / split / "metadata.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_mask(path: Path, values: Any) -> None:
    Image.fromarray(np.asarray(values)).save(path)


# (what is broken, what the line must say, whether it is seen before the run folder is made)
BROKEN: dict[str, tuple[Callable[[Path], Any], list[str], bool]] = {
    "missing image": (lambda r: (r / "train/3.png").unlink(), ["train/3.png: does not exist", "line 5"], True),
    "missing mask": (lambda r: (r / "edits/mask1.png").unlink(), ["edits/mask1.png: does not exist"], True),
    "truncated image": (lambda r: truncate(r / "train/3.png"), ["train/3.png: cannot be read as an image"], False),
    "no image at all": (lambda r: (r / "train/3.png").write_text("x"), ["train/3.png: cannot be read as an"], False),
    "mask of another size": (lambda r: save_mask(r / "edits/mask1.png", np.zeros((5, 7), np.uint8)),
                             ["edits/mask1.png: the mask is 7 x 5 pixels, its image 24 x 24"], False),
    "source of another size": (lambda r: save_mask(r / "train/2.png", np.zeros((5, 7, 3), np.uint8)),
                               ["edits/2.png"], False),
    "mask with classes": (lambda r: save_mask(r / "edits/mask1.png", np.full((SIDE, SIDE), 2, np.uint8)),
                          ["edits/mask1.png: mask values span [2, 2]"], False),
    "mask of 16 bits": (lambda r: save_mask(r / "edits/mask1.png", np.full((SIDE, SIDE), 999, np.uint16)),
                        ["edits/mask1.png: mask values span [999, 999]"], False),
    "coloured mask": (lambda r: save_mask(r / "edits/mask1.png", np.zeros((SIDE, SIDE, 3), np.uint8)),
                      ["edits/mask1.png: a mask must have one channel"], False),
    "edit without mask or source": (lambda r: rewrite(r, "edits", "mask1.png", ""),
                                    ["edits/metadata.csv, line 3: has neither", "needs a mask or its source"], True),
    "edit listed twice": (lambda r: rewrite(r, "edits", "\n2.png", "\n0.png"),
                          ["edits/metadata.csv, line 4: lists", "as line 2 does"], True),
    "edit of a test image": (lambda r: rewrite(r, "edits", "../train/2.png", "../test/2.png"),
                             ["edits/metadata.csv, line 4: is an edit of", "the split test"], True),
    "label too large": (lambda r: rewrite(r, "test", "1.png,1", "1.png,7"),
                        ["test/metadata.csv, line 3: label 7 is out of range, must be in 0 to 1"], True),
    "label no number": (lambda r: rewrite(r, "train", "1.png,1", "1.png,cat"),
                        ["train/metadata.csv, line 3: label is 'cat', must be an integer from 0"], True),
    "group no number": (lambda r: rewrite(r, "test", "2.png,0,2", "2.png,0,dog"),
                        ["test/metadata.csv, line 4: group is 'dog', must be an integer from 0"], True),
    "box no number": (lambda r: rewrite(r, "test", "2,3,20,21.5", "2,left,20,21.5"),
                      ["test/metadata.csv, line 2: y0 is 'left', must be a number of pixels"], True),
    "negative label": (lambda r: rewrite(r, "train", "1.png,1", "1.png,-1"), ["line 3: label is '-1'"], True),
    "label missing": (lambda r: rewrite(r, "train", "1.png,1", "1.png,"), ["line 3: label is ''"], True),
    "group missing": (lambda r: rewrite(r, "test", "1.png,1,1", "1.png,1,"), ["line 3: group is ''"], True),
    "no rows": (lambda r: (r / "train/metadata.csv").write_text("file_name,label\n"), ["lists no image"], True),
    "empty file": (lambda r: (r / "train/metadata.csv").write_text(""), ["train/metadata.csv: is empty"], True),
    "no label column": (lambda r: rewrite(r, "train", "label", "class"), ["has no column 'label'"], True),
    "ragged rows": (lambda r: rewrite(r, "train", "1.png,1", "1.png,1,2,3"), ["cannot be read as CSV"], True),
    "no table": (lambda r: (r / "train/metadata.csv").unlink(), ["train/metadata.csv does not exist"], True),
    "no test split": (lambda r: shutil.rmtree(r / "test"), ["test/metadata.csv does not exist"], True),
    "no edits": (lambda r: shutil.rmtree(r / "edits"), ["this data set has no edited images"], True),
}  # fmt: skip
