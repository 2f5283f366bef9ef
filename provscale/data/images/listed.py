"""Images that a CSV file of their data set lists: its rows, what may be wrong with them, and the items.

Whatever is wrong is reported as one line that names file and line; the caller decides whether the first one ends it
(training) or all are listed (`tools/check_data.py`).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision import tv_tensors

from provscale.data.decode import decode_rgb, read_image
from provscale.data.images.cub_metadata import Report, refuse
from provscale.data.images.folder import FolderSplit
from provscale.data.images.manifest import check_edits
from provscale.data.splits import Chosen, DataSplits, OnDemand, Transform
from provscale.sample import Item


@dataclass(frozen=True)
class ListedImage:
    """One image of a list.

    Attributes:
        path: its file.
        name: the file as its list names it.
        label: class, 0-based.
        group: 0-based; None where the data set has no groups.
        where: the file and line that list it.
    """

    path: Path
    name: str
    label: int
    group: int | None
    where: str


@dataclass
class ExtraOptions:
    """What ALIA's data sets do with their extra real images, whose number of each class edits are compared with.

    Args:
        extra: train on the extra real images of ALIA's `+real` arm too.
        match_extra: draw the edits so that each class has its share of the extra real images' classes; false = from
            all edits alike.
    """

    extra: bool = False
    match_extra: bool = True


class ListedImages:
    """Items of listed images, opened when asked for.

    Args:
        images: what is listed.
        annotated: whether items carry `annotations["group"]`; evaluated ones do, training items do not.
    """

    def __init__(self, images: Sequence[ListedImage], annotated: bool = False) -> None:
        self.images, self.annotated = images, annotated

    def __len__(self) -> int:
        return len(self.images)

    def label(self, index: int) -> int:
        return self.images[index].label

    def item_id(self, index: int) -> str:
        return self.images[index].name

    def __getitem__(self, index: int) -> Item:
        """Raises UserError for a file that does not decode."""
        image = self.images[index]
        annotations = {"group": image.group} if self.annotated and image.group is not None else {}
        pixels = tv_tensors.Image(read_image(image.path, decode_rgb))
        return Item(pixels, image.label, str(image.path), annotations=annotations)


def read_rows(path: Path, columns: Sequence[str], report: Report = refuse) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a CSV file stands, and its cells by column; other columns than `columns` may be there too.

    Reported: no such file, no text, a missing column, a row of another length, no row at all.
    """
    if not path.is_file():
        report(f"{path}: does not exist; docs/data.md says where it is to be had")
        return
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                found = ", ".join(reader.fieldnames or ()) or "nothing"
                report(f"{path}: has no column '{missing[0]}' (found: {found}); take the original file")
                return
            empty = True
            for row in reader:
                empty = False
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    report(f"{where}: has not as many cells as the first line; repair this row")
                else:
                    yield where, row
            if empty:
                report(f"{path}: lists no image")
    except (UnicodeDecodeError, csv.Error) as error:
        report(f"{path}: cannot be read as CSV ({str(error).splitlines()[0]}); replace this file")


def number_in(row: Mapping[str, str], column: str, allowed: Sequence[int], where: str, report: Report) -> int | None:
    """A cell that must be one of the integers `allowed`; anything else is reported, and None."""
    text = row[column].strip()
    value = int(text) if text.isdecimal() else None
    if value in allowed:
        return value
    report(f"{where}: {column} is '{text}', must be one of {', '.join(map(str, allowed))}")
    return None


class Unique:
    """Reports what is listed twice, in one list or in several."""

    def __init__(self, report: Report) -> None:
        self.seen: dict[tuple[str, str], str] = {}
        self.report = report

    def __call__(self, column: str, value: str, where: str) -> None:
        before = self.seen.setdefault((column, value), where)
        if before != where:
            self.report(f"{where}: {column} '{value}' is listed twice, before in {before}; remove one of them")


def check_labels(
    train: Iterable[ListedImage], evaluated: Iterable[ListedImage], names: Sequence[str], report: Report = refuse
) -> None:
    """Reported: an evaluated image of a class that no training image has."""
    known = {image.label for image in train}
    for image in evaluated:
        if image.label not in known:
            report(f"{image.where}: its class is {names[image.label]}, of which there is no training image")


def check_files(images: Iterable[ListedImage], report: Report = refuse) -> None:
    """Reported: a row without its image file."""
    for image in images:
        if not image.path.is_file():
            report(f"{image.path}: does not exist, but {image.where} names it")


def opened(images: Sequence[ListedImage], annotated: bool = False) -> ListedImages:
    """The items, once every file is found to be there. Raises UserError as `check_files`."""
    check_files(images)
    return ListedImages(images, annotated)


def read_edits(
    folder: Path, names: Sequence[str], held_out: Iterable[ListedImage], report: Report = refuse
) -> FolderSplit:
    """The edits of `folder`/metadata.csv, in the format of provscale/data/images/folder.py.

    Args:
        names: names of the classes.
        held_out: validation and test images, of which no edit may be trained on.

    Raises:
        UserError: see `FolderSplit`. Reported: a label out of range, and what `check_edits` does.
    """
    edits = FolderSplit(folder, edited=True)
    for number, row in enumerate(edits.rows, start=2):
        if row["label"] >= len(names):
            classes = ", ".join(f"{label} = {name}" for label, name in enumerate(names))
            report(f"{edits.metadata}, line {number}: label is {row['label']}, must be one of {classes}")
    files, sources, masks = (edits.files(name) for name in ("file_name", "source_file_name", "mask_file_name"))
    apart = [image.path.resolve() for image in held_out]
    check_edits(edits.metadata, files, sources, masks, {"validation or test": apart}, report)
    return edits


def sources_among(train: Sequence[ListedImage], edits: FolderSplit) -> list[int | None]:
    """For each edit, the position of its source in `train`; None for another image, or none."""
    positions: dict[Path | None, int] = {image.path.resolve(): number for number, image in enumerate(train)}
    return [positions.get(path) for path in edits.files("source_file_name")]


def class_counts(images: Iterable[ListedImage], num_classes: int) -> tuple[int, ...]:
    """How many images each class has."""
    labels = [image.label for image in images]
    return tuple(labels.count(label) for label in range(num_classes))


def listed_splits(
    root: Path, train: Sequence[ListedImage], extra: Sequence[ListedImage], test: Sequence[ListedImage],
    validation: Callable[[], Sequence[ListedImage]] | None, names: tuple[str, ...], options: ExtraOptions,
    transform: Transform, held_out: Sequence[ListedImage] = (), **others: Any,
) -> DataSplits:  # fmt: skip
    """The splits of a data set as ALIA uses it, with the edits in root/edits. Image files are looked for when their
    split is first used, so that weights can be evaluated without the training images.

    Args:
        extra: extra real images, which are trained on if `options` say so.
        validation: lists the validation images when they are first needed; None = there are none.
        names: names of the classes.
        transform: of training and evaluation alike.
        held_out: further images of which no edit may be trained on. Those that are trained on themselves do not count.
        others: further attributes of `DataSplits`.
    """
    training = [*train, *(extra if options.extra else [])]

    def edits() -> FolderSplit:
        trained_on = {image.path for image in training}
        evaluated = [*(validation() if validation else []), *test, *held_out]
        return read_edits(root / "edits", names, [image for image in evaluated if image.path not in trained_on])

    return DataSplits(
        train=OnDemand(lambda: opened(training)),
        validation=None if validation is None else OnDemand(lambda: opened(validation(), annotated=True)),
        test=OnDemand(lambda: opened(test, annotated=True)),
        edits=OnDemand(edits) if (root / "edits").is_dir() else None,
        edit_sources=lambda: sources_among(training, edits()),
        evaluated_train=lambda positions: Chosen(ListedImages(training, annotated=True), positions),
        num_classes=len(names),
        class_names=names,
        extra_counts=class_counts(extra, len(names)) if options.match_extra and extra else None,
        train_transform=transform,
        evaluation_transform=transform,
        **others,
    )
