"""Data set `imagefolder`: one's own images, with masks, listed as Hugging Face's image folders are.

    root/train/metadata.csv          file_name,label[,group][,mask_file_name][,source_file_name][,object_mask_file_name]
                                     [,x0,y0,x1,y1]
    root/train/*.jpg ...
    root/validation/metadata.csv ... the best epoch is chosen on these; may be called val/, or be left out
    root/test/metadata.csv ...
    root/edits/metadata.csv ...      edited images, with mask_file_name or source_file_name;
                                     `synthesis.name: edited` needs them

Labels and groups are integers from 0. File names are relative to the split's folder and may leave it
(`../train/a.png`).

An edit whose source is an evaluated image is refused, and so is one that is listed twice. Columns not named here, such
as `prompt`, are left alone.

`mask_file_name` is the provenance mask of an edited image: one channel, the size of its image, 8-bit gray (255 =
unedited, 0 = edited, values between are shares) or 0 and 1. `source_file_name` is the image before the edit, from
which the mask is derived. `object_mask_file_name` and x0..y1 (pixels) serve evaluation, in train the former also
`synthesis.name: annotated`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from provscale.config import DataConfig
from provscale.data.decode import decode_plain, decode_rgb, read_image
from provscale.data.images.manifest import check_edits
from provscale.data.images.metadata_table import as_number, read_table, written
from provscale.data.splits import DATA_SETS, Chosen, DataSplits, OnDemand
from provscale.data.transforms import ItemTransform
from provscale.errors import UserError
from provscale.sample import Item

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BOX = ("x0", "y0", "x1", "y1")
FILES = ("file_name", "mask_file_name", "source_file_name", "object_mask_file_name")


class FolderSplit:
    """One split of an image folder; images are opened when asked for.

    The table is read alone, not with `load_dataset("imagefolder")`: that looks at every file of the folder at every
    start (10 s for 20 000 images), and allows no `source_file_name` outside it, such as ../train/a.jpg.
    """

    def __init__(self, folder: Path, edited: bool = False, annotated: bool = False) -> None:
        """
        Args:
            edited: whether provenance masks or sources are read.
            annotated: whether group, box and object mask are read.

        Raises:
            UserError: no or an unreadable metadata.csv, a wrong value in it, or a file that does not exist.
        """
        self.folder, self.edited, self.annotated = folder, edited, annotated
        self.metadata = folder / "metadata.csv"
        self.rows = read_table(self.metadata)
        for number, row in enumerate(self.rows, start=2):
            self.check_row(row, f"{self.metadata}, line {number}")

    def check_row(self, row: dict[str, Any], where: str) -> None:
        for column in ("label", "group"):
            value = as_number(row.get(column, 0))
            if value is None or value != value // 1 or value < 0:
                raise UserError(f"{where}: {column} is '{written(row[column])}', must be an integer from 0")
            if column in row:
                row[column] = int(value)
        for column in BOX:
            if as_number(row.get(column, 0)) is None:
                raise UserError(f"{where}: {column} is '{written(row[column])}', must be a number of pixels")
        for column in FILES:
            if row.get(column) is None:
                if column in row and column in ("file_name", "object_mask_file_name"):
                    raise UserError(f"{where}: {column} is empty, must name a file")
            elif not (self.folder / str(row[column])).is_file():
                raise UserError(f"{self.folder / str(row[column])}: does not exist, but {where} names it")

    def __len__(self) -> int:
        return len(self.rows)

    def label(self, index: int) -> int:
        return int(self.rows[index]["label"])

    def item_id(self, index: int) -> str:
        return str(self.rows[index]["file_name"])

    def with_annotations(self) -> FolderSplit:
        """The same images with group, box and object mask."""
        annotated = copy.copy(self)
        annotated.annotated = True
        return annotated

    def annotates(self, column: str) -> bool:
        """Whether the images have a value in this column; either all or none of them do."""
        return self.rows[0].get(column) is not None

    def files(self, column: str) -> list[Path | None]:
        """The file that every row names in this column, as an absolute path."""
        return [(self.folder / row[column]).resolve() if row.get(column) else None for row in self.rows]

    def check_labels(self, num_classes: int) -> None:
        """Raises UserError for a label from `num_classes` on."""
        for number, row in enumerate(self.rows, start=2):
            if row["label"] >= num_classes:
                raise UserError(
                    f"{self.metadata}, line {number}: label {int(row['label'])} is out of range, must be in 0 to "
                    f"{num_classes - 1} ({num_classes} classes, by data.options.class_names or else the training "
                    "labels)"
                )

    def __getitem__(self, index: int) -> Item:
        row = self.rows[index]
        image = tv_tensors.Image(read_image(self.folder / row["file_name"], decode_rgb))
        item = Item(image, int(row["label"]), str(self.folder / row["file_name"]), is_synthetic=self.edited)
        size = tuple(image.shape[1:])
        if self.edited and row.get("source_file_name"):
            item.source = partial(read_image, self.folder / row["source_file_name"], decode_rgb)
        if self.edited and row.get("mask_file_name"):
            item.provenance_mask = tv_tensors.Mask(self.mask(row["mask_file_name"], size))
        if not self.annotated:
            return item
        if row.get("group") is not None:
            item.annotations["group"] = int(row["group"])
        if row.get("object_mask_file_name"):
            item.annotations["object_mask"] = tv_tensors.Mask(self.mask(row["object_mask_file_name"], size) > 0.5)
        if all(row.get(edge) is not None for edge in BOX):
            item.annotations["box"] = tv_tensors.BoundingBoxes(
                [[float(row[edge]) for edge in BOX]], format="XYXY", canvas_size=size
            )
        return item

    def mask(self, name: str, size: tuple[int, ...]) -> torch.Tensor:
        """float32 [1, H, W] in [0, 1]."""
        path = self.folder / name
        values = read_image(path, decode_plain)
        if values.ndim != 2:
            raise UserError(f"{path}: a mask must have one channel, this image has shape {values.shape}")
        if values.shape != size:
            raise UserError(f"{path}: the mask is {values.shape[1]} x {values.shape[0]} pixels, its image "
                            f"{size[1]} x {size[0]}; they must be equal")  # fmt: skip
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and (high <= 1 or (values.dtype == np.uint8 and high >= 128))):
            raise UserError(
                f"{path}: mask values span [{low:g}, {high:g}]; allowed: 0 and 1, 8-bit gray up to 255 (= unedited), "
                "or numbers in [0, 1]"
            )
        mask = torch.from_numpy(values.astype(np.float32))[None]
        return mask.div_(255) if high > 1 else mask


@dataclass
class FolderOptions:
    """How an image folder is read.

    Args:
        class_names: a name for each label; empty = the training labels themselves.
        group_names: a name for each group; empty = the groups themselves.
        crop: train on random resized crops, mirrored half of the time; false = on whole images.
    """

    class_names: Sequence[str] = ()
    group_names: Sequence[str] = ()
    crop: bool = True


@DATA_SETS.register("imagefolder")
def build(config: DataConfig, seed: int, options: FolderOptions) -> DataSplits:
    """Metrics are those that every folder evaluated has annotations for. Training images and edits are looked into when
    they are needed, so that weights can be evaluated without them; without `class_names`, training labels number the
    classes where they are there.

    Raises:
        UserError: `data.root` is no such folder, or a file in it cannot be used.
    """
    if config.root is None:
        raise UserError("data.root: is not set; the imagefolder data set needs its folder")
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder; give the one that holds train/ and test/")
    folders = [name for name in ("validation", "val", "test") if (root / name).is_dir()]
    if {"validation", "val"} <= set(folders):
        raise UserError(f"data.root: {root} has both validation/ and val/; keep one of them")

    @cache
    def read(name: str) -> FolderSplit:
        return FolderSplit(root / name, edited=name == "edits", annotated=name in ("validation", "val", "test"))

    class_names = options.class_names or [
        str(label) for label in range(count_classes(read(name) for name in labelled_folders(root, folders)))
    ]

    def opened(name: str) -> FolderSplit:
        split = read(name)
        split.check_labels(len(class_names))
        return split

    evaluated = {name: opened(name) for name in folders}

    def opened_edits() -> FolderSplit:
        split = opened("edits")
        edits, sources, masks = (split.files(name) for name in ("file_name", "source_file_name", "mask_file_name"))
        check_edits(
            split.metadata, edits, sources, masks, {name: other.files("file_name") for name, other in evaluated.items()}
        )
        return split

    annotated = [*evaluated.values(), *([opened("train")] if config.validation_share else [])]
    has_group, has_box = (
        bool(annotated) and all(split.annotates(column) for split in annotated) for column in ("group", "x0")
    )
    group_names = options.group_names or (
        [str(group) for group in range(1 + max(int(row["group"]) for split in annotated for row in split.rows))]
        if has_group
        else []
    )
    size = [config.image_size, config.image_size]
    resize = v2.Resize(size, antialias=True)
    crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    return DataSplits(
        train=OnDemand(lambda: opened("train")),
        validation=evaluated.get("validation", evaluated.get("val")),
        test=evaluated["test"] if "test" in evaluated else OnDemand(lambda: opened("test")),
        edits=OnDemand(opened_edits) if (root / "edits").is_dir() else None,
        evaluated_train=lambda positions: Chosen(opened("train").with_annotations(), positions),
        edit_sources=lambda: edit_sources(read("train"), read("edits")),
        num_classes=len(class_names),
        class_names=tuple(class_names),
        group_names=tuple(group_names),
        train_transform=ItemTransform(crop if options.crop else resize, IMAGENET_MEAN, IMAGENET_STD),
        evaluation_transform=ItemTransform(resize, IMAGENET_MEAN, IMAGENET_STD),
        metrics=("group_accuracy", "maxboxacc") if has_box else ("group_accuracy",),
        best="worst_group" if has_group else "accuracy",
    )


def labelled_folders(root: Path, evaluated: list[str]) -> list[str]:
    """The folders whose labels number the classes: train/, or those that are evaluated where it is not there."""
    return evaluated if evaluated and not (root / "train").is_dir() else ["train"]


def count_classes(splits: Iterable[FolderSplit]) -> int:
    """One more than the largest label."""
    return 1 + max(split.label(index) for split in splits for index in range(len(split)))


def edit_sources(train: FolderSplit, edits: FolderSplit) -> list[int | None]:
    """For each edit, the position of its source among the training images; None for another source, or none."""
    positions: dict[Path | None, int] = {path: number for number, path in enumerate(train.files("file_name"))}
    return [positions.get(path) for path in edits.files("source_file_name")]
