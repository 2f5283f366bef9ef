"""Data set `iwildcam`: animals in front of camera traps, tested at other places than trained (Koh et al., ICML 2021).

    root/train/*.jpg            the images of WILDS' iwildcam_v2.0, of all splits
    root/{train,val,test,train_extra}_subset.csv        ALIA's lists (subset alia), or
    root/metadata.csv           WILDS' own list (subset wilds)
    root/edits/metadata.csv     edited images, as provscale/data/images/folder.py describes; label = position in CLASSES

All lists have the columns split, location_remapped, y, filename, image_id. Classes are the seven of ALIA (Dunlap et
al., NeurIPS 2023), which are y 0, 24, 32, 36, 48, 49, 52 of WILDS; groups are the locations.

| subset | train | validation | test | extra |
|---|---|---|---|---|
| alia | 6052 images, 15 locations | 2826 (of WILDS' id_test), 122 locations | 8483, 2 locations | 2224, 13 locations |
| wilds | the seven classes of WILDS' train | of val | of test | none |

Every image is resized to 448 x 448, its rows 10 to 410 are cut out (camera traps write time and temperature above and
below), and these are resized to 224 x 224; as ALIA, in proportion for another `data.image_size`.

ALIA leaves pixels in [0, 1], without ImageNet's mean and deviation. For one and the same function of an image, an
input gradient with respect to pixels in [0, 1] is 1 / 0.229, 1 / 0.224, 1 / 0.225 times (red, green, blue) that with
respect to normalised ones, so L_PG is about 20 times as large: alpha 0.1 here does what alpha 2 does with `normalise`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

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

CLASSES = {0: "background", 24: "cattle", 32: "elephants", 36: "impalas", 48: "zebras", 49: "giraffes", 52: "dik-diks"}
"""Name of each class by its y in WILDS; their order here is that of our labels."""
LABELS = {y: label for label, y in enumerate(CLASSES)}
NAMES = tuple(CLASSES.values())
COLUMNS = ("split", "location_remapped", "y", "filename", "image_id")
WILDS_SPLITS = {"train": "train", "val": "validation", "test": "test", "id_val": None, "id_test": None}
ALIA_FILES = {"train": "train", "validation": "val", "test": "test", "extra": "train_extra"}
Lists = dict[str, list[ListedImage]]


@dataclass
class IWildCamOptions(ExtraOptions):
    """How iWildCam is read. ALIA has 2224 extra real images.

    Args:
        subset: alia (its four CSV files) or wilds (metadata.csv's own splits, the same seven classes).
        normalise: subtract ImageNet's mean and divide by its deviation; ALIA does not. L_PG is then about 20 times
            smaller at one and the same network function, and needs an alpha that much larger.
    """

    subset: Literal["alia", "wilds"] = "alia"
    normalise: bool = False

    def __post_init__(self) -> None:
        if self.extra and self.subset == "wilds":
            raise UserError("data.options.extra: is true, but only subset alia has extra images; set it to false")


def read_alia(root: Path, report: Report = refuse) -> tuple[Lists, list[int]]:
    """ALIA's splits `train`, `validation`, `test` and `extra`, and the locations by group.

    Reported: see `read_rows`; a class that is none of the seven, a location that is no number, an image listed twice,
    also in two files; an evaluated class that training does not have.
    """
    rows = {split: list(read_rows(root / f"{file}_subset.csv", COLUMNS, report)) for split, file in ALIA_FILES.items()}
    return to_lists(root, rows, report)


def read_wilds(root: Path, report: Report = refuse) -> tuple[Lists, list[int]]:
    """WILDS' splits, without the images of other classes; `extra` is empty. Reported: as `read_alia`, and a split that
    is none."""
    rows: dict[str, list[tuple[str, dict[str, str]]]] = {split: [] for split in ALIA_FILES}
    for where, row in read_rows(root / "metadata.csv", COLUMNS, report):
        split = WILDS_SPLITS.get(row["split"])
        other_class = row["y"].isdecimal() and int(row["y"]) not in CLASSES
        if row["split"] not in WILDS_SPLITS:
            report(f"{where}: split is '{row['split']}', must be one of {', '.join(WILDS_SPLITS)}")
        elif split is not None and not other_class:
            rows[split].append((where, row))
    return to_lists(root, rows, report)


def to_lists(root: Path, rows: dict[str, list[tuple[str, dict[str, str]]]], report: Report) -> tuple[Lists, list[int]]:
    places = {row["location_remapped"] for listed in rows.values() for _, row in listed}
    locations = sorted(int(place) for place in places if place.isdecimal())
    groups = {location: group for group, location in enumerate(locations)}
    unique = Unique(report)
    lists: Lists = {split: [] for split in rows}
    for split, listed in rows.items():
        for where, row in listed:
            unique("image_id", row["image_id"], where)
            unique("filename", row["filename"], where)
            y = number_in(row, "y", list(CLASSES), where, report)
            location = row["location_remapped"]
            if not location.isdecimal():
                report(f"{where}: location_remapped is '{location}', must be an integer from 0")
            elif y is not None:
                name, group = row["filename"], groups[int(location)]
                lists[split].append(ListedImage(root / "train" / name, name, LABELS[y], group, where))
    check_labels(lists["train"], lists["validation"] + lists["test"], NAMES, report)
    return lists, locations


class WithoutCaptions(v2.Transform):
    """Resizes to twice the size, cuts rows 10 to 410 of 448 out (of another size: in proportion), and resizes to it.

    Args:
        size: height and width of the result, in pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        twice, unit = 2 * self.size, self.size / 224
        large = functional.resize(inpt, [twice, twice], antialias=True)
        rows = functional.crop(large, round(10 * unit), 0, round(400 * unit), twice)
        return functional.resize(rows, [self.size, self.size], antialias=True)


@DATA_SETS.register("iwildcam")
def build(config: DataConfig, seed: int, options: IWildCamOptions) -> DataSplits:
    """See `listed_splits`. The best epoch is that of the best macro F1, as ALIA's code has it for this data set.

    Raises:
        UserError: the first thing that is wrong in the lists or files.
    """
    if config.root is None or not Path(config.root).is_dir():
        raise UserError(f"data.root: {config.root} is no folder; give WILDS' iwildcam_v2.0, which holds train/")
    root = Path(config.root)
    lists, locations = read_alia(root) if options.subset == "alia" else read_wilds(root)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if options.normalise else ((0.0,) * 3, (1.0,) * 3)
    return listed_splits(
        root,
        lists["train"],
        lists["extra"],
        lists["test"],
        lambda: lists["validation"],
        NAMES,
        options,
        ItemTransform(WithoutCaptions(config.image_size), mean, std),
        group_names=tuple(f"location_{location}" for location in locations),
        metrics=("group_accuracy", "macro_f1"),
        best="macro_f1",
    )
