"""A small CUB_200_2011 folder with the official lists, wsolevaluation's metadata and CUBv2, and ways to break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("001.Albatross", "002.Auklet", "003.Blackbird")
SIDES = ((60, 44), (48, 64), (40, 40))
PER_CLASS = {"train": 4, "val": 2, "test": 3}


def box_of(number: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1; every fifth box ends at the image's last pixels."""
    width, height = size
    if number % 5 == 4:
        return width // 2, height // 3, width - 1, height - 1
    return number % 7, number % 5, width // 2 + number % 3, height // 2 + number % 4


def make_cub(root: Path, metadata: bool = True, train: int = PER_CLASS["train"]) -> Path:
    """CUB_200_2011 in `root` with `train` training images of each class, CUBv2 in `root/CUBV2`; with `metadata`,
    root/metadata for all splits, else for val only (which CUB's own lists do not have). Every image is noise with a
    bright bird in its box."""
    generator = np.random.default_rng(0)
    official: dict[str, list[str]] = {
        "images": [],
        "image_class_labels": [],
        "train_test_split": [],
        "bounding_boxes": [],
    }
    lists: dict[str, dict[str, list[str]]] = {}
    number = 0
    for split, count in {**PER_CLASS, "train": train}.items():
        files = lists[split] = {"image_ids": [], "class_labels": [], "localization": [], "image_sizes": []}
        for label, folder in enumerate(CLASSES):
            for index in range(count):
                number += 1
                name, size = f"{folder}/{split}_{index}.jpg", SIDES[(label + index) % 3]
                x0, y0, x1, y1 = box_of(number, size)
                pixels = generator.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
                pixels[y0 : y1 + 1, x0 : x1 + 1] = 60 * (label + 1) + pixels[y0 : y1 + 1, x0 : x1 + 1] // 8
                path = root / ("CUBV2" if split == "val" else "images") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
                files["image_ids"].append(name)
                files["class_labels"].append(f"{name},{label}")
                files["localization"].append(f"{name},{x0},{y0},{x1},{y1}")
                files["image_sizes"].append(f"{name},{size[0]},{size[1]}")
                if split != "val":
                    official["images"].append(f"{number} {name}")
                    official["image_class_labels"].append(f"{number} {label + 1}")
                    official["train_test_split"].append(f"{number} {int(split == 'train')}")
                    # Some of CUB's own boxes reach x + width = W, which the metadata does not.
                    width, height = (x1 - x0 + (x1 == size[0] - 1), y1 - y0 + (y1 == size[1] - 1))
                    official["bounding_boxes"].append(f"{number} {x0}.0 {y0}.0 {width}.0 {height}.0")
    for file, lines in official.items():
        (root / f"{file}.txt").write_text("\n".join(lines) + "\n")
    for split, files in lists.items():
        if metadata or split == "val":
            (root / "metadata" / split).mkdir(parents=True)
            for file, lines in files.items():
                # The published lists have no newline at their end.
                (root / "metadata" / split / f"{file}.txt").write_text("\n".join(lines))
    return root


def change(path: Path, edit: Callable[[str], str]) -> None:
    """Replaces a text file's content by what `edit` makes of it."""
    before = path.read_text()
    after = edit(before)
    assert after != before, f"nothing changed in {path}"
    path.write_text(after)


def damage(root: Path) -> dict[str, list[str]]:
    """Breaks a folder of `make_cub` in every way at once; for each, parts of the line that must name it."""
    train, test = root / "metadata" / "train", root / "metadata" / "test"
    (root / "images" / "001.Albatross" / "train_0.jpg").unlink()
    (root / "images" / "002.Auklet" / "test_1.jpg").write_bytes(b"no image")
    change(train / "localization.txt", lambda text: text.replace("train_1.jpg,", "train_1.jpg,9", 1))
    change(train / "image_ids.txt", lambda text: text + "\n002.Auklet/train_0.jpg")
    change(test / "class_labels.txt", lambda text: text.replace("Blackbird/test_2.jpg,2", "Blackbird/test_2.jpg,7"))
    change(
        train / "class_labels.txt",
        lambda text: text.replace("003.Blackbird/train_3.jpg,2", "003.Blackbird/train_3.jpg,5"),
    )
    change(test / "image_ids.txt", lambda text: text + "\n001.Albatross/train_2.jpg")
    change(
        test / "image_sizes.txt",
        lambda text: text.replace("001.Albatross/test_0.jpg,60,44", "001.Albatross/test_0.jpg,sixty"),
    )
    return {
        "row without its image": ["train_0.jpg: does not exist", "image_ids.txt, line 1"],
        "no image": ["test_1.jpg: cannot be read as an image"],
        "box outside": ["train/localization.txt, line 2", "is not inside its image"],
        "twice": ["train/image_ids.txt, line 13", "listed twice"],
        "label of no class": ["label 7 of '003.Blackbird/test_2.jpg'"],
        "hole": ["no training image has label 3"],
        "train in test": ["test/image_ids.txt, line 10", "is also in train"],
        "no numbers": ["test/image_sizes.txt, line 1", "must be id,width,height"],
        "no line": ["test/class_labels.txt: has no line for '001.Albatross/train_2.jpg'"],
    }  # fmt: skip
