"""Data set `cub`: CUB-200-2011 for weakly supervised localisation, split as wsolevaluation does (Choe et al., 2020).

`data.root` is the folder of CUB_200_2011.tgz, with `images/` (or one that holds the class folders itself).

    --data.name cub --data.root CUB_200_2011

`python -m tools.prepare_cub ROOT` makes or checks the rest, and says what is missing and where it is to be had.

Training learns from labels alone: its items carry no box. Without CUBv2, `data.validation_share` holds out a share of
train instead (0 chooses the best epoch on test, and says so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from provscale.config import DataConfig
from provscale.data.decode import decode_plain, decode_rgb, read_image
from provscale.data.images.cub_metadata import ImageRecord, check_files, check_splits, read_split
from provscale.data.splits import DATA_SETS, Chosen, DataSplits, OnDemand
from provscale.data.transforms import ItemTransform
from provscale.errors import UserError
from provscale.sample import Item

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CUBV2_PLACES = ("CUBV2", "images/CUBV2", "images", "../CUBV2", "../CUB", "../CUB/CUBV2", ".")


@dataclass
class CubOptions:
    """How CUB is read.

    Args:
        metadata: folder with train/, val/ and test/ (provscale/data/images/cub_metadata.py); null = ROOT/metadata.
        cubv2: folder of CUBv2's images, the validation split; null = the first place near ROOT that holds them.
        segmentations: folder of CUB's segmentations.tgz, for pxap and gradient_energy on test; null = not read.
        evaluation: resize (the whole image, wsolevaluation's) or centre_crop (224 of 256 pixels, SAT's).
    """

    metadata: str | None = None
    cubv2: str | None = None
    segmentations: str | None = None
    evaluation: Literal["resize", "centre_crop"] = "resize"


class CubSplit:
    """One split; images are opened when asked for.

    Args:
        records: its images.
        images: the folder that their names are below.
        annotated: whether boxes (and segmentations) are given.
        segmentations: folder of `<class>/<image>.png`, or None.
    """

    def __init__(
        self, records: list[ImageRecord], images: Path, annotated: bool, segmentations: Path | None = None
    ) -> None:
        self.records, self.images = records, images
        self.annotated, self.segmentations = annotated, segmentations
        self.boxes = max(len(record.boxes) for record in records)

    def __len__(self) -> int:
        return len(self.records)

    def label(self, index: int) -> int:
        return self.records[index].label

    def item_id(self, index: int) -> str:
        return self.records[index].name

    def __getitem__(self, index: int) -> Item:
        """`annotations["box"]` float [N, 4] in pixels of the image, rows of NaN where it has fewer than others.

        Raises:
            UserError: a file that does not decode, or an image of another size than the metadata says.
        """
        record = self.records[index]
        path = self.images / record.name
        image = tv_tensors.Image(read_image(path, decode_rgb))
        size = (image.shape[1], image.shape[2])
        if size[::-1] != record.size:
            raise UserError(
                f"{path}: is {size[1]} x {size[0]} pixels, but {record.where} goes with a size of "
                f"{record.size[0]} x {record.size[1]}; its boxes would be wrong: take the original file"
            )
        item = Item(image, record.label, str(path))
        if self.annotated:
            rows = [[float(edge) for edge in box] for box in record.boxes]
            rows += [[float("nan")] * 4] * (self.boxes - len(rows))
            item.annotations["box"] = tv_tensors.BoundingBoxes(rows, format="XYXY", canvas_size=size)
        if self.annotated and self.segmentations is not None:
            item.annotations["object_mask"] = self.segmentation(record, size)
        return item

    def segmentation(self, record: ImageRecord, size: tuple[int, int]) -> tv_tensors.Mask:
        """[1, H, W], 1 where more than half of the annotators saw the bird (8-bit gray)."""
        assert self.segmentations is not None
        path = (self.segmentations / record.name).with_suffix(".png")
        values = read_image(path, decode_plain)
        if values.shape[:2] != size:
            raise UserError(f"{path}: the segmentation has shape {values.shape}, its image is {size[1]} x {size[0]}")
        first = values if values.ndim == 2 else values[..., 0]
        return tv_tensors.Mask(torch.from_numpy(first > 127)[None])


def find_cubv2(root: Path, given: str | None, records: Sequence[ImageRecord]) -> Path | None:
    """The folder below which CUBv2's images are: the one given, or the first place that holds the first of them."""
    if given is not None:
        return Path(given)
    places = (root / place for place in CUBV2_PLACES)
    return next((place for place in places if records and (place / records[0].name).is_file()), None)


def no_cubv2(root: Path) -> str:
    """What to say when CUBv2 is nowhere."""
    return (
        f"data.options.cubv2: CUBv2's images, the validation split, are in none of {', '.join(CUBV2_PLACES)} below "
        f"{root}; get CUBV2.tar (README of github.com/clovaai/wsolevaluation) and name its folder, or set "
        "data.validation_share to a share of train to hold out"
    )


def image_folder(root: Path) -> Path:
    return root / "images" if (root / "images").is_dir() else root


@DATA_SETS.register("cub")
def build(config: DataConfig, seed: int, options: CubOptions) -> DataSplits:
    """The splits. A split's image files are looked for when it is first used, so that weights can be evaluated without
    the training images.

    Raises:
        UserError: the first thing that is wrong in metadata or files.
    """
    if config.root is None or not Path(config.root).is_dir():
        raise UserError(f"data.root: {config.root} is no folder; give that of CUB_200_2011.tgz, which holds images/")
    root = Path(config.root)
    images = image_folder(root)
    metadata = Path(options.metadata or root / "metadata")
    records = {split: read_split(metadata / split) for split in ("train", "test")}
    check_splits(records)
    given = options.segmentations

    def opened(split: str, annotated: bool = True) -> CubSplit:
        check_files(records[split], images)
        masks = Path(given) if given is not None and split == "test" else None
        return CubSplit(records[split], images, annotated, masks)

    def opened_cubv2() -> CubSplit:
        rows = read_split(metadata / "val")
        check_splits({"train": records["train"], "val": rows, "test": records["test"]})
        found = find_cubv2(root, options.cubv2, rows)
        if found is None:
            raise UserError(no_cubv2(root))
        check_files(rows, found)
        return CubSplit(rows, found, annotated=True)

    names = {record.label: Path(record.name).parts[0] for record in records["train"]}
    size, larger = [config.image_size] * 2, [round(config.image_size * 256 / 224)] * 2
    if options.evaluation == "resize":
        evaluated: v2.Transform = v2.Resize(size, antialias=True)
    else:
        evaluated = v2.Compose([v2.Resize(larger, antialias=True), v2.CenterCrop(size)])
    return DataSplits(
        train=OnDemand(lambda: opened("train", annotated=False)),
        validation=OnDemand(opened_cubv2) if config.validation_share is None else None,
        test=OnDemand(lambda: opened("test")),
        num_classes=len(names),
        class_names=tuple(names[label] for label in sorted(names)),
        train_transform=ItemTransform(
            v2.Compose([v2.Resize(larger, antialias=True), v2.RandomCrop(size), v2.RandomHorizontalFlip()]),
            IMAGENET_MEAN,
            IMAGENET_STD,
        ),
        evaluation_transform=ItemTransform(evaluated, IMAGENET_MEAN, IMAGENET_STD),
        metrics=("maxboxacc", "gradient_energy", "group_accuracy"),
        best="maxboxacc",
        evaluated_train=lambda positions: Chosen(opened("train"), positions),
    )
