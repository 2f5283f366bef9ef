"""Makes the provenance masks of edited images once, as files beside them, which training then reads.

    python -m tools.make_provenance_masks --edits DIR/edits --provenance refined --workers 8

DIR/edits holds metadata.csv (provscale/data/images/manifest.py). The masks are those that training with the same
`synthesis.options` would make. Edits with a mask of their own are left alone, masks that are newer than their image are
kept: stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from rich.progress import track

from provscale.data.images.folder import FolderSplit
from provscale.errors import UserError, reported
from provscale.synthesis.provenance import ProvenanceOptions, make_mask, mask_file, one_value
from provscale.synthesis.provenance.mask_files import is_current, write_mask_file
from provscale.tracking.terminal import console
from tools.mask_options import add_mask_options, options_from


def make_one(split: FolderSplit, options: ProvenanceOptions, row: int) -> tuple[str, str] | UserError:
    """Makes and writes one mask. Returns the image's name and what a mask of one value says ("" for any other).

    A mistake is returned, not raised: it crosses the process boundary as it is, and the other images go on.
    """
    torch.set_num_threads(1)
    try:
        item = split[row]
        if not callable(item.source):
            raise UserError(f"{split.metadata}, line {row + 2}: has neither a mask nor a source; add one of them")
        try:
            mask = make_mask(item.source(), item.inputs, options)
        except UserError as error:
            raise UserError(f"{item.name}: {error}") from None
        write_mask_file(Path(item.name), options.key, mask)
        return item.name, one_value(mask) or ""
    except UserError as error:
        return error


def missing_rows(split: FolderSplit, key: str) -> list[int]:
    """Rows without a mask of their own whose mask file is not there, or older than the image."""
    images = [split.folder / row["file_name"] for row in split.rows]
    return [
        number
        for number, (row, image) in enumerate(zip(split.rows, images, strict=True))
        if not row.get("mask_file_name") and not is_current(mask_file(image, key), image)
    ]


def make_masks(folder: Path, options: ProvenanceOptions, workers: int) -> Counter[str]:
    """Makes all masks that are missing; counts `made`, `there before`, and `edited`, `unedited` of one value.

    Raises:
        UserError: images that cannot be used, all of them named, after the masks of the others are written.
    """
    split = FolderSplit(folder, edited=True)
    rows = missing_rows(split, options.key)
    counts = Counter({"there before": len(split) - len(rows), "made": 0})
    problems, started = [], time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(partial(make_one, split, options), rows, chunksize=8)
        for result in track(results, "masks", len(rows), console=console, disable=not console.is_terminal):
            if isinstance(result, UserError):
                problems.append(str(result))
                continue
            name, one = result
            counts["made"] += 1
            if one:
                counts[one] += 1
                console.print(f"{name}: the mask says {one} everywhere", markup=False, highlight=False)
    seconds = max(time.monotonic() - started, 1e-9)
    print(
        f"{counts['made']} masks made, {counts['there before']} there before; {counts['edited']} say edited and "
        f"{counts['unedited']} unedited everywhere, and are trained on without guidance; "
        f"{counts['made'] / seconds:.1f} images/s"
    )
    if problems:
        raise UserError(f"{len(problems)} images have no mask: {'; '.join(problems[:20])}")
    return counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=Path, required=True, metavar="DIR", help="folder of edits/metadata.csv")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    add_mask_options(parser)
    options = parser.parse_args(arguments)

    def run() -> None:
        if options.workers < 1:
            raise UserError(f"--workers: is {options.workers}, must be at least 1")
        make_masks(options.edits, ProvenanceOptions(**options_from(options, options.provenance)), options.workers)

    return reported(run)


if __name__ == "__main__":
    sys.exit(main())
