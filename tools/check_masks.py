"""How good the provenance masks are: extracted ones against the truth, where a data set knows it.

    python tools/check_masks.py --cfg configs/demo.yaml [--synthesis.options.smoothing 1.0]

The truth of an edited image is its `object_mask` annotation: the pixels the edit left alone.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from provscale.command_line import parse
from provscale.data import build_splits
from provscale.errors import UserError, reported
from provscale.evaluation.mask_quality import MaskQuality, count_pixels, join, quality_of
from provscale.synthesis import build_synthesis


def measure(arguments: list[str]) -> tuple[int, MaskQuality]:
    """Number of edited images and the quality of their masks before any transform.

    Raises:
        UserError: the config has no edited images, or their truth is unknown.
    """
    config = parse(arguments)
    splits = build_splits(config.data, config.seed)
    synthesis = build_synthesis(config.synthesis)
    if splits.edits is None or not synthesis.uses_edits:
        raise UserError("synthesis.name: this config uses no edited images; choose edited, and data that has them")
    counts = []
    for index in range(len(splits.edits)):
        item = synthesis.prepare(splits.edits[index])
        if "object_mask" not in item.annotations or item.provenance_mask is None:
            raise UserError(
                f"{item.name}: the truth of its mask is unknown; check a data set that knows it, e.g. digits"
            )
        counts.append(count_pixels(item.provenance_mask[None] > 0.5, item.annotations["object_mask"][None] > 0))
    return len(counts), quality_of(join(counts))


def main() -> int:
    return reported(lambda: show(sys.argv[1:]))


def show(arguments: list[str]) -> None:
    number, quality = measure(arguments)
    table = Table("mean IoU", "unedited precision", "unedited recall", "edited precision", "edited recall")
    values = (quality.mean_iou, quality.unedited_precision, quality.unedited_recall, quality.edited_precision,
              quality.edited_recall)  # fmt: skip
    table.add_row(*(f"{100 * value:.1f} %" for value in values))
    Console().print(f"{number} edited images", table)


if __name__ == "__main__":
    sys.exit(main())
