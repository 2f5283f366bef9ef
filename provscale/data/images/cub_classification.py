"""Data set `cub_classification`: which of 200 species is it (Wah et al., 2011), with edits as ALIA adds them.

    root/images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt, images/      CUB_200_2011.tgz
    root/edits/metadata.csv     edited images, as provscale/data/images/folder.py describes; label = class number - 1

| | train | validation | test | extra |
|---|---|---|---|---|
| images | 4994: of each species all official training images but the last 5 | 1000, CUBv2 | 5794 | 1000, those 5 |

"Last" is by images.txt (Dunlap et al., NeurIPS 2023). ALIA chooses the best epoch on test; here CUBv2 is the validation
split, as in the data set `cub`. ALIA's way is `data.validation_share: 0`; a share above 0 is held out of train.

Every image is resized to a square, without crop or flip, and normalised by ImageNet's mean and deviation (as ALIA).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.transforms import v2

from provscale.config import DataConfig
from provscale.data.images.cub import find_cubv2, image_folder, no_cubv2
from provscale.data.images.cub_metadata import ImageRecord, Report, check_splits, read_official, read_split, refuse
from provscale.data.images.folder import IMAGENET_MEAN, IMAGENET_STD
from provscale.data.images.listed import ExtraOptions, ListedImage, listed_splits
from provscale.data.splits import DATA_SETS, DataSplits
from provscale.data.transforms import ItemTransform
from provscale.errors import UserError

EXTRA_PER_CLASS = 5


@dataclass
class CubClassificationOptions(ExtraOptions):
    """How CUB is read for classification. The extra real images are the last 5 training images of each species.

    Args:
        metadata: folder with CUBv2's lists in val/ (provscale/data/images/cub_metadata.py); null = ROOT/metadata.
        cubv2: folder of CUBv2's images, the validation split; null = the first place near ROOT that holds them.
    """

    metadata: str | None = None
    cubv2: str | None = None


def listed(records: Sequence[ImageRecord], images: Path) -> list[ListedImage]:
    return [ListedImage(images / record.name, record.name, record.label, None, record.where) for record in records]


def parted(train: Sequence[ListedImage]) -> tuple[list[ListedImage], list[ListedImage]]:
    """ALIA's training images and its extra ones, class by class."""
    kept, extra = list[ListedImage](), list[ListedImage]()
    for label in sorted({image.label for image in train}):
        own = [image for image in train if image.label == label]
        kept += own[:-EXTRA_PER_CLASS]
        extra += own[-EXTRA_PER_CLASS:]
    return kept, extra


def read_lists(root: Path, report: Report = refuse) -> tuple[dict[str, list[ListedImage]], tuple[str, ...]]:
    """The images of `train`, `extra` and `test`, and the names of the classes.

    Reported: see `read_official` and `check_splits`; a class of which no training image is left.
    """
    records = read_official(root, report)
    check_splits(records, report)
    names = {record.label: Path(record.name).parts[0] for record in records["train"]}
    official = {split: listed(rows, image_folder(root)) for split, rows in records.items()}
    train, extra = parted(official["train"])
    for label in sorted(names.keys() - {image.label for image in train}):
        report(
            f"{root / 'train_test_split.txt'}: class {label + 1} ({names[label]}) has at most {EXTRA_PER_CLASS} "
            "training images, and those are extra ones; take the archive's own file"
        )
    return {"train": train, "extra": extra, "test": official["test"]}, tuple(names[label] for label in sorted(names))


@DATA_SETS.register("cub_classification")
def build(config: DataConfig, seed: int, options: CubClassificationOptions) -> DataSplits:
    """See `listed_splits`.

    Raises:
        UserError: the first thing that is wrong in lists or files.
    """
    if config.root is None or not Path(config.root).is_dir():
        raise UserError(f"data.root: {config.root} is no folder; give that of CUB_200_2011.tgz, which holds images/")
    root = Path(config.root)
    lists, names = read_lists(root)

    def cubv2() -> list[ListedImage]:
        records = read_split(Path(options.metadata or root / "metadata") / "val")
        found = find_cubv2(root, options.cubv2, records)
        if found is None:
            raise UserError(no_cubv2(root))
        outside = next((record for record in records if record.label >= len(names)), None)
        if outside is not None:
            raise UserError(f"{outside.where}: label {outside.label} of '{outside.name}' is no training label, 0 to "
                            f"{len(names) - 1}")  # fmt: skip
        return listed(records, found)

    return listed_splits(
        root,
        lists["train"],
        lists["extra"],
        lists["test"],
        cubv2 if config.validation_share is None else None,
        names,
        options,
        ItemTransform(v2.Resize([config.image_size] * 2, antialias=True), IMAGENET_MEAN, IMAGENET_STD),
    )
