"""Images that a CSV file of their data set lists: its rows, what may be wrong with them, and the items.

Whatever is wrong is reported as one line that names file and line; the caller decides whether the first one ends it
(training) or all are listed (`tools/check_data.py`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision import tv_tensors

from provscale.data.decode import decode_rgb, read_image
from provscale.data.images.cub_metadata import Report, refuse
from provscale.data.images.folder import FolderSplit
from provscale.sample import Item


@dataclass(frozen=True)
class ListedImage:
    """One image of a list.

    Attributes:
        path: its file.
        name: the file as its list names it.
        label: class, 0-based.
        group: 0-based.
        where: the file and line that list it.
    """

    path: Path
    name: str
    label: int
    group: int
    where: str


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
        annotations = {"group": image.group} if self.annotated else {}
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
        UserError: see `FolderSplit`. Reported: a label out of range, an edit listed twice, an edit of a held-out image.
    """
    edits = FolderSplit(folder, edited=True)
    apart = {image.path.resolve(): image.where for image in held_out}
    unique = Unique(report)
    sources = edits.files("source_file_name")
    for number, (row, file, source) in enumerate(zip(edits.rows, edits.files("file_name"), sources, strict=True)):
        where = f"{edits.metadata}, line {number + 2}"
        if row["label"] >= len(names):
            classes = ", ".join(f"{label} = {name}" for label, name in enumerate(names))
            report(f"{where}: label is {row['label']}, must be one of {classes}")
        unique("file_name", str(file), where)
        if source is not None and source in apart:
            report(f"{where}: is an edit of {source}, which {apart[source]} lists for evaluation; remove this row")
    return edits


def sources_among(train: Sequence[ListedImage], edits: FolderSplit) -> list[int | None]:
    """For each edit, the position of its source in `train`; None for another image, or none."""
    positions: dict[Path | None, int] = {image.path.resolve(): number for number, image in enumerate(train)}
    return [positions.get(path) for path in edits.files("source_file_name")]


def class_counts(images: Iterable[ListedImage], num_classes: int) -> tuple[int, ...]:
    """How many images each class has."""
    labels = [image.label for image in images]
    return tuple(labels.count(label) for label in range(num_classes))
