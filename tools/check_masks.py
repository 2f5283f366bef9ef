"""How good the provenance masks of edited images are, where the truth is known; one line per method.

    python -m tools.check_masks --cfg configs/demo.yaml [--synthesis.options.smoothing 1.0]
    python -m tools.check_masks --edits DIR/edits --provenance otsu refined [--rows odd] [--dilate 0.02]

The truth of an edited image is what the edit left alone: `object_mask` of a config's data set, or of a manifest the
column `object_mask_file_name`. IoU, recall (of the unedited pixels, how many are called so) and leak (of the edited
pixels, how many are called unedited) are means over images; ms is processor time per image, without reading files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from provscale.errors import UserError, reported
from provscale.evaluation.mask_quality import PixelCounts, count_pixels, iou_of, join
from provscale.sample import Item
from provscale.synthesis.edited import Edited
from provscale.synthesis.provenance import dilated, one_value
from tools.mask_options import add_mask_options, options_from


@dataclass(frozen=True)
class Result:
    """Of one method over a set of edits: means over images, `ms` per image, and masks of one value (counted too)."""

    number: int
    iou: float
    recall: float
    leak: float
    milliseconds: float
    one_value: int


def measure(items: Iterable[Item], synthesis: Edited) -> Result:
    """Compares the masks that `synthesis` gives with the truth.

    Raises:
        UserError: no item, or the truth of one is unknown.
    """
    counts: list[PixelCounts] = []
    seconds, useless = 0.0, 0
    for item in items:
        if "object_mask" not in item.annotations:
            raise UserError(
                f"{item.name}: the truth of its mask is unknown; check data that knows it: a manifest with the column "
                "object_mask_file_name, or the data set digits"
            )
        if callable(item.source):
            item.source = item.source()
        start = time.process_time()
        mask = dilated(synthesis.undilated_mask(item), synthesis.dilate)
        seconds += time.process_time() - start
        useless += one_value(mask) is not None
        counts.append(count_pixels(mask[None] > 0.5, item.annotations["object_mask"][None] > 0))
    if not counts:
        raise UserError("there is no edited image to check; choose other data or rows")
    pixels = join(counts)
    return Result(
        number=len(counts),
        iou=float(iou_of(pixels).mean()),
        recall=mean_share(pixels.unedited_as_unedited, pixels.unedited_as_edited),
        leak=mean_share(pixels.edited_as_unedited, pixels.edited_as_edited),
        milliseconds=1000 * seconds / len(counts),
        one_value=useless,
    )


def mean_share(part: Tensor, rest: Tensor) -> float:
    """Mean over images of part / (part + rest), of those that have any."""
    whole = part + rest
    return float((part[whole > 0].double() / whole[whole > 0]).mean())


def of_config(arguments: list[str]) -> dict[str, Result]:
    """The masks that a config trains on."""
    from provscale.command_line import parse
    from provscale.data import build_splits
    from provscale.synthesis import build_synthesis

    config = parse(arguments)
    splits = build_splits(config.data, config.seed)
    synthesis = build_synthesis(config.synthesis)
    if splits.edits is None or not isinstance(synthesis, Edited):
        raise UserError("synthesis.name: this config uses no edited images; choose edited, and data that has them")
    edits = splits.edits
    return {synthesis.key: measure((edits[index] for index in range(len(edits))), synthesis)}


def of_manifest(options: argparse.Namespace) -> dict[str, Result]:
    """Masks made anew by each method: neither the manifest's own nor those on file."""
    from provscale.data.images.folder import FolderSplit

    split = FolderSplit(options.edits, edited=True, annotated=True)
    chosen = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}[options.rows]
    rows = list(range(len(split)))[chosen][: options.limit]

    def items() -> Iterator[Item]:
        for row in rows:
            item = split[row]
            item.provenance_mask, item.name = None, f"{item.name} (line {row + 2})"  # no file is found by this name
            yield item

    results = {}
    for method in options.provenance:
        synthesis = Edited(**options_from(options, method), dilate=options.dilate)
        results[synthesis.key] = measure(items(), synthesis)
    return results


def show(arguments: list[str]) -> None:
    if "--edits" in arguments or "-h" in arguments:
        results = of_manifest(parser().parse_args(arguments))
    else:
        results = of_config(arguments)
    table = Table("method", "edits", "IoU", "recall", "leak", "ms", "masks of one value")
    for name, found in results.items():
        shares = (f"{value:.3f}" for value in (found.iou, found.recall, found.leak))
        table.add_row(name, str(found.number), *shares, f"{found.milliseconds:.1f}", str(found.one_value))
    Console(soft_wrap=True).print(table)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="check_masks.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--edits", type=Path, metavar="DIR", help="folder of a manifest with object_mask_file_name")
    add_mask_options(made, several=True)
    made.add_argument("--dilate", type=float, default=0.0, help="radius by which masks grow, a share of the side")
    made.add_argument("--rows", choices=("all", "even", "odd"), default="all", help="of the manifest, from 0")
    made.add_argument("--limit", type=int, default=None, metavar="N", help="the first N of these rows only")
    return made


def main() -> int:
    torch.set_num_threads(1)
    return reported(lambda: show(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
