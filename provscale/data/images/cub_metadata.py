"""CUB's lists of images, labels, boxes and sizes: wsolevaluation's metadata, and CUB_200_2011's own files.

METADATA/{train,val,test}/    lines without a header; image ids are paths below a folder of images
    image_ids.txt       id
    class_labels.txt    id,label              0-based
    localization.txt    id,x0,y0,x1,y1        integer pixels, one line per box
    image_sizes.txt     id,width,height

train = train-weaksup (5994 images), val = train-fullsup (CUBv2, 1000), test (5794).

Whatever is wrong is reported as one line that names file and line; the caller decides whether the first one ends it
(training) or all are listed (`tools/prepare_cub.py --check`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from provscale.errors import UserError

SPLITS = ("train", "val", "test")
COUNTS = {"train": 5994, "val": 1000, "test": 5794}
Report = Callable[[str], None]


def refuse(fault: str) -> None:
    """The `Report` that ends at the first fault."""
    raise UserError(fault)


@dataclass
class ImageRecord:
    """One image of a split.

    Attributes:
        name: image id, a path below the folder of images.
        label: 0-based; -1 while unknown.
        size: (width, height) in pixels.
        boxes: x0, y0, x1, y1 in pixels of the image.
        where: the file and line that list it.
    """

    name: str
    where: str
    label: int = -1
    size: tuple[int, int] = (0, 0)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)


def lines_of(path: Path, report: Report) -> Iterator[tuple[str, list[str]]]:
    """Where each line stands, and the line cut at its commas from the right, so that an id may hold some."""
    if not path.is_file():
        report(f"{path}: does not exist; take it from wsolevaluation's metadata/CUB, or run: python -m "
               "tools.prepare_cub ROOT")  # fmt: skip
        return
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        report(f"{path}: is no text file ({error.reason} at byte {error.start}); replace it")
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.split(",")


def integers(parts: list[str], count: int) -> tuple[str, list[int]] | None:
    """The id and the `count` integers after it; None if the line is no such thing."""
    name, numbers = ",".join(parts[: len(parts) - count]), parts[len(parts) - count :]
    try:
        return (name, [int(number) for number in numbers]) if name and len(parts) > count else None
    except ValueError:
        return None


def read_split(folder: Path, report: Report = refuse) -> list[ImageRecord]:
    """The images of one split, in the order of image_ids.txt.

    Reported: a missing file, a line of another form, an id twice or in one file only, a label below 0, a box that is
    outside its image.
    """
    ids = folder / "image_ids.txt"
    records: dict[str, ImageRecord] = {}
    for where, parts in lines_of(ids, report):
        name = ",".join(parts)
        if name in records:
            report(f"{where}: '{name}' is listed twice, before in {records[name].where}; remove one of them")
        records[name] = ImageRecord(name, where)
    if not records and ids.is_file():
        report(f"{ids}: lists no image")

    def rows(file: str, form: str, again: bool = False) -> Iterator[tuple[str, ImageRecord, list[int]]]:
        seen: set[str] = set()
        path, count = folder / file, form.count(",")
        for where, parts in lines_of(path, report):
            row = integers(parts, count)
            if row is None:
                report(f"{where}: is '{','.join(parts)}', must be {form}")
            elif row[0] not in records:
                report(f"{where}: '{row[0]}' is not in {ids}; add it there or remove this line")
            elif row[0] in seen and not again:
                report(f"{where}: '{row[0]}' is listed twice; remove one of them")
            else:
                seen.add(row[0])
                yield where, records[row[0]], row[1]
        if path.is_file():
            for name in records.keys() - seen:
                report(f"{path}: has no line for '{name}' ({records[name].where}); add one")

    for where, record, (label,) in rows("class_labels.txt", "id,label"):
        if label < 0:
            report(f"{where}: label is {label}, must be 0 or more")
        record.label = label
    for where, record, (width, height) in rows("image_sizes.txt", "id,width,height"):
        if width < 1 or height < 1:
            report(f"{where}: the size is {width} x {height}, must be at least 1 x 1")
        record.size = width, height
    for where, record, (x0, y0, x1, y1) in rows("localization.txt", "id,x0,y0,x1,y1", again=True):
        width, height = record.size
        if record.size != (0, 0) and not (0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height):
            report(f"{where}: box {x0},{y0},{x1},{y1} is not inside its image of {width} x {height} pixels, "
                   "0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height")  # fmt: skip
        record.boxes.append((x0, y0, x1, y1))
    return list(records.values())


def check_splits(splits: dict[str, list[ImageRecord]], report: Report = refuse) -> None:
    """Reported: an image of one split that is also in another, a class without a training image, and a label that
    training does not have."""
    names = [(split, {record.name: record for record in records}) for split, records in splits.items()]
    for number, (split, mine) in enumerate(names):
        for other, theirs in names[number + 1 :]:
            for name in sorted(mine.keys() & theirs.keys()):
                report(f"{theirs[name].where}: '{name}' of {other} is also in {split} ({mine[name].where}); "
                       "remove one of them")  # fmt: skip
    labels = {record.label for record in splits["train"] if record.label >= 0}
    for missing in sorted(set(range(max(labels, default=-1) + 1)) - labels):
        report(f"class_labels.txt: no training image has label {missing}, but some have {max(labels)}; labels must be "
               "0 to K - 1 without holes")  # fmt: skip
    for split, records in splits.items():
        for record in records:
            if record.label >= 0 and record.label not in labels:
                report(f"{record.where}: label {record.label} of '{record.name}' ({split}) is no training label, 0 to "
                       f"{max(labels, default=-1)}")  # fmt: skip


def check_files(records: list[ImageRecord], images: Path, report: Report = refuse) -> None:
    """Reported: a row without its image file."""
    for record in records:
        if not (images / record.name).is_file():
            report(f"{images / record.name}: does not exist, but {record.where} names it")


OFFICIAL = {"images": 1, "image_class_labels": 1, "train_test_split": 1, "bounding_boxes": 4}
"""CUB_200_2011's own files, by how many values each line has after the image's number."""


def official_rows(path: Path, count: int, report: Report) -> dict[str, list[str]]:
    """The values of each image by its number. Reported: no such file or no text, another number of values, values that
    are no numbers (but a name), an image listed twice."""
    if not path.is_file():
        report(f"{path}: does not exist; give the folder of CUB_200_2011.tgz (1.15 GB), which holds it: "
               "https://data.caltech.edu/records/65de6-vp158")  # fmt: skip
        return {}
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        report(f"{path}: is no text file ({error.reason} at byte {error.start}); take the archive's own file")
        return {}
    rows: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        key, *values = line.split() or [""]
        where = f"{path}, line {number}"
        if len(values) != count:
            report(f"{where}: has {len(values)} values after the image's number, must be {count}")
        elif path.stem != "images" and not all(value.replace(".", "", 1).isdecimal() for value in values):
            report(f"{where}: is '{line}', must be numbers from 0; take the archive's own file")
        elif key in rows:
            report(f"{where}: image {key} is listed twice; take the archive's own file")
        else:
            rows[key] = values
    return rows


def read_official(root: Path, report: Report = refuse) -> dict[str, list[ImageRecord]]:
    """train and test of CUB_200_2011's images.txt, image_class_labels.txt, train_test_split.txt and bounding_boxes.txt
    (lines "number value ..."), without sizes, as wsolevaluation made its metadata of them.

    Their boxes are x, y, width, height; here x1 = x + width and y1 = y + height, truncated.

    Reported: see `official_rows`; an image that one of the files lacks, a class that is no number from 1.
    """
    columns = {file: official_rows(root / f"{file}.txt", count, report) for file, count in OFFICIAL.items()}
    splits: dict[str, list[ImageRecord]] = {"train": [], "test": []}
    for number, (key, (name,)) in enumerate(columns["images"].items(), start=1):
        absent = [file for file in columns if key not in columns[file]]
        if absent:
            report(f"{root / absent[0]}.txt: has no line for image {key} ('{name}'); take the archive's own file")
            continue
        where, label = f"{root / 'images.txt'}, line {number}", columns["image_class_labels"][key][0]
        if not label.isdecimal() or int(label) < 1:
            report(f"{root / 'image_class_labels.txt'}: image {key} has class '{label}', must be a number from 1")
            continue
        x, y, width, height = (float(value) for value in columns["bounding_boxes"][key])
        record = ImageRecord(name, where, int(label) - 1)
        record.boxes = [(int(x), int(y), int(x + width), int(y + height))]
        splits["train" if columns["train_test_split"][key] == ["1"] else "test"].append(record)
    return splits
