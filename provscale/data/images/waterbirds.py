"""Data set `waterbirds`: is the bird a landbird or a waterbird, where the place behind it usually tells (Sagawa et al.,
ICLR 2020).

    root/metadata.csv       img_id,img_filename,y,split,place,place_filename       split 0 train, 1 validation, 2 test
    root/<species>/*.jpg
    root/edits/metadata.csv edited images, as provscale/data/images/folder.py describes; label = y

group = 2 * y + place: landbird_on_land, landbird_on_water, waterbird_on_land, waterbird_on_water.

What is trained on, chosen on and tested on (`construction`):

| | train | validation | test |
|---|---|---|---|
| alia | every 4th image of the groups in which the place fits the bird: 1139, all tied | those groups: 600 | 5794 |
| group_dro | 4795, 95 % tied | 1199, places drawn at random | 5794 |

ALIA (Dunlap et al., NeurIPS 2023) sorts by species and shuffles within a species by its run's seed before it takes
every 4th. The order within a species is that of metadata.csv here, so that the split is the same for every seed; how
many images come from each species is ALIA's number. The extra real images of its `+real` arm are all whose place does
not fit, of train (240) and validation (599).

Every image is resized to a square, without crop or flip, and normalised by ImageNet's mean and deviation (as ALIA).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchvision.transforms import v2

from provscale.config import DataConfig
from provscale.data.images.cub_metadata import Report, refuse
from provscale.data.images.folder import IMAGENET_MEAN, IMAGENET_STD
from provscale.data.images.listed import (
    ExtraOptions,
    ListedImage,
    Unique,
    check_labels,
    listed_splits,
    number_in,
    read_rows,
)
from provscale.data.splits import DATA_SETS, DataSplits
from provscale.data.transforms import ItemTransform
from provscale.errors import UserError

CLASSES = ("landbird", "waterbird")
GROUPS = ("landbird_on_land", "landbird_on_water", "waterbird_on_land", "waterbird_on_water")
FITTING = (0, 3)
"""Groups in which the place fits the bird."""
SPLITS = ("train", "validation", "test")


@dataclass
class WaterbirdsOptions(ExtraOptions):
    """How Waterbirds is read. The extra real images are the 839 whose place does not fit their bird.

    Args:
        construction: alia (1139 training images, all tied to their place) or group_dro (4795, 95 %).
    """

    construction: Literal["alia", "group_dro"] = "alia"

    def __post_init__(self) -> None:
        if self.extra and self.construction == "group_dro":
            raise UserError(
                "data.options.extra: is true, but with construction group_dro its images are training and validation "
                "images already; set it to false, or construction to alia"
            )


def read_metadata(root: Path, report: Report = refuse) -> dict[str, list[ListedImage]]:
    """The images of each split of metadata.csv, in its order.

    Reported: see `read_rows`; y, place or split that is none, an image listed twice, a class or group of validation or
    test that training does not have.
    """
    splits: dict[str, list[ListedImage]] = {split: [] for split in SPLITS}
    unique = Unique(report)
    columns = ("img_id", "img_filename", "y", "split", "place")
    for where, row in read_rows(root / "metadata.csv", columns, report):
        unique("img_id", row["img_id"], where)
        unique("img_filename", row["img_filename"], where)
        label = number_in(row, "y", range(2), where, report)
        split = number_in(row, "split", range(3), where, report)
        place = number_in(row, "place", range(2), where, report)
        if label is not None and split is not None and place is not None:
            image = ListedImage(root / row["img_filename"], row["img_filename"], label, 2 * label + place, where)
            splits[SPLITS[split]].append(image)
    evaluated = splits["validation"] + splits["test"]
    check_labels(splits["train"], evaluated, CLASSES, report)
    groups, labels = {image.group for image in splits["train"]}, {image.label for image in splits["train"]}
    for image in evaluated:
        if image.group is not None and image.group not in groups and image.label in labels:
            report(f"{image.where}: its group is {GROUPS[image.group]}, of which there is no training image")
    return splits


def alia_train(train: Sequence[ListedImage]) -> list[ListedImage]:
    """Every 4th image whose place fits its bird, by species."""
    fitting = [image for image in train if image.group in FITTING]
    return sorted(fitting, key=lambda image: image.path.parent.name)[::4]


def alia_extra(splits: dict[str, list[ListedImage]]) -> list[ListedImage]:
    """The images of validation and train whose place does not fit their bird."""
    return [image for split in ("validation", "train") for image in splits[split] if image.group not in FITTING]


@DATA_SETS.register("waterbirds")
def build(config: DataConfig, seed: int, options: WaterbirdsOptions) -> DataSplits:
    """See `listed_splits`. The best epoch is that of the best accuracy (alia: its validation images are all tied) or
    worst group (group_dro).

    Raises:
        UserError: the first thing that is wrong in metadata or files.
    """
    if config.root is None or not Path(config.root).is_dir():
        raise UserError(f"data.root: {config.root} is no folder; give that of Waterbirds, which holds metadata.csv")
    root = Path(config.root)
    splits = read_metadata(root)
    train, validation = splits["train"], splits["validation"]
    if options.construction == "alia":
        train, validation = alia_train(train), [image for image in validation if image.group in FITTING]
    return listed_splits(
        root,
        train,
        alia_extra(splits),
        splits["test"],
        lambda: validation,
        CLASSES,
        options,
        ItemTransform(v2.Resize([config.image_size] * 2, antialias=True), IMAGENET_MEAN, IMAGENET_STD),
        held_out=splits["validation"],
        group_names=GROUPS,
        # Of the published training split: what the literature weights by.
        training_groups=tuple([image.group for image in splits["train"]].count(group) for group in range(len(GROUPS))),
        best="accuracy" if options.construction == "alia" else "worst_group",
    )
