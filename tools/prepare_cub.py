"""Makes CUB's metadata, and checks a download before anything is trained on it.

    python -m tools.prepare_cub CUB_200_2011                        makes metadata/train and metadata/test if absent
    python -m tools.prepare_cub CUB_200_2011 --check                lists everything that is wrong, writes nothing
    python -m tools.prepare_cub CUB_200_2011 --check --decode       opens every image, too (minutes)

What it needs, and where it is to be had:
    CUB_200_2011.tgz   1.15 GB, 11 788 images      https://data.caltech.edu/records/65de6-vp158
    metadata/CUB/val   lists of CUBv2              https://github.com/clovaai/wsolevaluation (folder metadata/CUB)
    CUBV2.tar          1000 images                 link in that project's README
    segmentations.tgz  39 MB, for pixel metrics    https://data.caltech.edu/records/w9d68-gec53

`--metadata` and `--cubv2` name other folders than ROOT/metadata and the places where CUBv2 is looked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from provscale.data.decode import decode_rgb, read_image
from provscale.data.images.cub import find_cubv2, image_folder, no_cubv2
from provscale.data.images.cub_metadata import (
    COUNTS,
    SPLITS,
    ImageRecord,
    check_files,
    check_splits,
    read_official,
    read_split,
)
from provscale.errors import UserError, reported
from provscale.files import write_atomically


def write_split(folder: Path, records: list[ImageRecord]) -> None:
    """The four lists of one split, each whole or not at all; image_ids.txt last, as the sign that all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, line in FORMS.items():
        write_atomically(folder / file, "".join(text for record in records for text in line(record)))


FORMS: dict[str, Callable[[ImageRecord], list[str]]] = {
    "class_labels.txt": lambda record: [f"{record.name},{record.label}\n"],
    "localization.txt": lambda record: [f"{record.name},{','.join(map(str, box))}\n" for box in record.boxes],
    "image_sizes.txt": lambda record: [f"{record.name},{record.size[0]},{record.size[1]}\n"],
    "image_ids.txt": lambda record: [f"{record.name}\n"],
}


def with_size(record: ImageRecord, path: Path) -> ImageRecord:
    """The record with its image's size, and its boxes' right and lower ends within the last pixel, as
    wsolevaluation's."""
    if not path.is_file():
        raise UserError(f"{path}: does not exist, but {record.where} names it; unpack CUB_200_2011.tgz again")
    try:
        with Image.open(path) as image:
            record.size = width, height = image.size
    except OSError as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); unpack CUB_200_2011.tgz again") from None
    record.boxes = [(x0, y0, min(x1, width - 1), min(y1, height - 1)) for x0, y0, x1, y1 in record.boxes]
    return record


def make_metadata(root: Path, metadata: Path) -> None:
    """Writes metadata/train and metadata/test from CUB's own files where they are missing."""
    missing = [split for split in ("train", "test") if not (metadata / split / "image_ids.txt").is_file()]
    if not missing:
        return
    splits = read_official(root)
    images = image_folder(root)
    complete = {split: [with_size(record, images / record.name) for record in splits[split]] for split in missing}
    for split, records in complete.items():
        write_split(metadata / split, records)
        print(f"{metadata / split}: made of CUB's own files, {len(records)} images")


def find_faults(root: Path, metadata: Path, cubv2: str | None, decode: bool) -> list[str]:
    """Everything that is wrong, one line each."""
    faults: list[str] = []
    records = {split: read_split(metadata / split, faults.append) for split in SPLITS}
    check_splits(records, faults.append)
    images = image_folder(root)
    folders = {"train": images, "test": images, "val": find_cubv2(root, cubv2, records["val"])}
    for split, rows in records.items():
        folder = folders[split]
        if folder is None:
            faults.append(no_cubv2(root))
            continue
        check_files(rows, folder, faults.append)
        if decode:
            for record in rows:
                if (folder / record.name).is_file():
                    faults += decoding_faults(record, folder / record.name)
    return faults


def decoding_faults(record: ImageRecord, path: Path) -> list[str]:
    try:
        _, height, width = read_image(path, decode_rgb).shape
    except UserError as error:
        return [str(error)]
    if (width, height) != record.size:
        return [f"{path}: is {width} x {height} pixels, the metadata says {record.size[0]} x {record.size[1]}"]
    return []


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 when something is missing or wrong."""
    return reported(lambda: prepare(arguments))


def prepare(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of CUB_200_2011.tgz")
    parser.add_argument("--metadata", type=Path, help="folder with train/, val/, test/; default ROOT/metadata")
    parser.add_argument("--cubv2", help="folder of CUBv2's images; default: looked for near ROOT")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--decode", action="store_true", help="open every image")
    options = parser.parse_args(arguments)
    if not options.root.is_dir():
        raise UserError(f"ROOT: {options.root} is no folder; give that of CUB_200_2011.tgz")
    metadata = options.metadata or options.root / "metadata"
    if not options.check:
        make_metadata(options.root, metadata)
    faults = find_faults(options.root, metadata, options.cubv2, options.decode)
    for fault in faults:
        print(fault)
    for split in SPLITS:
        path = metadata / split / "image_ids.txt"
        found = len(read_split(metadata / split, lambda _: None)) if path.is_file() else 0
        print(f"{split:<5} {found:5d} images listed, {COUNTS[split]} in the published split")
    if faults:
        raise UserError(f"{options.root}: {len(faults)} faults, listed above")
    print(f"{options.root}: complete; train with --data.name cub --data.root {options.root}")


if __name__ == "__main__":
    sys.exit(main())
