"""Lists everything that is wrong with a data set of docs/data.md, before a training finds the first of it.

    python -m tools.check_data --data.name waterbirds --data.root DIR [--data.options.construction group_dro]
    python -m tools.check_data --data.name iwildcam --data.root DIR [--data.options.subset wilds]
    python -m tools.check_data --data.name cub_classification --data.root DIR   (CUBv2 by tools.prepare_cub --check)

Ends with code 2 when there is something. Image files are looked for, not opened.
"""

from __future__ import annotations

import sys
from pathlib import Path

from provscale.command_line import parse
from provscale.data.images import cub_classification, iwildcam, waterbirds
from provscale.data.images.listed import ListedImage, check_files, read_edits
from provscale.errors import UserError, reported

PUBLISHED = {
    "waterbirds": {"train": 4795, "validation": 1199, "test": 5794},
    "iwildcam": {"train": 6052, "validation": 2826, "test": 8483, "extra": 2224},
    "cub_classification": {"train": 4994, "extra": 1000, "test": 5794},
}
"""Images in each published list (iwildcam and cub_classification: ALIA's)."""


def check(arguments: list[str]) -> None:
    """Prints faults, then the number of images in each list.

    Raises:
        UserError: there are faults, the config cannot be read, or the data set is another one.
    """
    config = parse(arguments)
    if config.data.name not in PUBLISHED:
        raise UserError(f"data.name: is {config.data.name}, must be one of {', '.join(PUBLISHED)}")
    if config.data.root is None or not Path(config.data.root).is_dir():
        raise UserError(f"data.root: {config.data.root} is no folder; docs/data.md says what it holds")
    root, faults = Path(config.data.root), list[str]()
    lists: dict[str, list[ListedImage]]
    names: tuple[str, ...]
    if config.data.name == "waterbirds":
        lists, names = waterbirds.read_metadata(root, faults.append), waterbirds.CLASSES
    elif config.data.name == "cub_classification":
        lists, names = cub_classification.read_lists(root, faults.append)
    else:
        read = iwildcam.read_wilds if config.data.options.get("subset") == "wilds" else iwildcam.read_alia
        lists, names = read(root, faults.append)[0], iwildcam.NAMES
    for images in lists.values():
        check_files(images, faults.append)
    edits = 0
    if (root / "edits").is_dir():
        try:
            evaluated = lists.get("validation", []) + lists["test"]
            edits = len(read_edits(root / "edits", names, evaluated, faults.append))
        except UserError as error:  # this reader ends at its first fault
            faults.append(str(error))
    for fault in faults:
        print(fault)
    for split, images in lists.items():
        known = PUBLISHED[config.data.name][split] if config.data.options.get("subset") != "wilds" else "?"
        print(f"{split:<10} {len(images):6d} images listed, {known} published")
    print(f"{'edits':<10} {edits:6d}")
    if faults:
        raise UserError(f"{root}: {len(faults)} faults, listed above")
    print(f"{root}: complete")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 when something is wrong."""
    return reported(lambda: check(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
