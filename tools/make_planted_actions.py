"""Writes the data set `planted_actions` as files that the data set `ucf101_24` reads.

    python tools/make_planted_actions.py planted --train 240 --test 120
    python provscale/train.py --cfg configs/planted_actions.yaml --data.name ucf101_24 --data.root planted \\
        --data.options '{frames: 16, persons: 6, classes: [Kick, Punch, Jump, Spin, Cartwheel, Roll]}'
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from provscale.data.skeletons.planted_actions import CLASSES, PlantedOptions, make_clips, write_files
from provscale.data.skeletons.ucf101 import SkeletonOptions
from provscale.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after a user's mistake, which is printed as one line."""
    parser = argparse.ArgumentParser(description="Writes planted actions in the file formats of UCF101-24.")
    parser.add_argument("folder", type=Path, help="where to write ucf101_2d.pkl, pyannot.pkl and testlist01.txt")
    for entry in fields(PlantedOptions):
        if entry.name == "validation":  # the files know training and test videos only
            continue
        parser.add_argument(f"--{entry.name}", type=type(entry.default), default=entry.default)
    parser.add_argument("--box_margin", type=float, default=SkeletonOptions.box_margin)
    given = vars(parser.parse_args(arguments))
    folder, box_margin = given.pop("folder"), given.pop("box_margin")
    try:
        clips, truth = make_clips(PlantedOptions(**given, validation=0), box_margin)
        for path in write_files(folder, clips, truth):
            print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(truth.train_videos)} training and {len(truth.test_videos)} test videos; classes: {', '.join(CLASSES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
