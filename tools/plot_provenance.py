"""Draws edited images beside their sources and masks (the supplement's Figure 6), from any table of edits, as PNG.

    python -m tools.plot_provenance --edits DIR/edits --out provenance.png --rows 0 17 230 --provenance otsu refined

For each edit a line: source, edit, their difference (the largest of a channel, brighter = more, up to the line's
largest), then of every method the mask (white = unedited) and the edit with what was edited shaded red. An edit with a
mask of its own shows that one, whatever the method; one without a source has no difference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from provscale.data.images.folder import FolderSplit
from provscale.errors import UserError, reported
from provscale.files import written_aside
from provscale.sample import Item
from provscale.synthesis.edited import Edited
from tools.mask_options import add_mask_options, options_from

RED = np.array([255.0, 0.0, 0.0])


def source_of(item: Item) -> Tensor | None:
    """The source uint8 [3, H, W] in the size of its edit; None where there is none."""
    source = item.source() if callable(item.source) else item.source
    if source is None or source.shape == item.inputs.shape:
        return source
    return functional.resize(source, list(item.inputs.shape[1:]), antialias=True)


def overlay(image: NDArray[np.uint8], mask: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The image [H, W, 3] with red over half of what is 0 in the mask [H, W]."""
    edited = 0.5 * (1 - mask[..., None])
    return np.rint(image * (1 - edited) + RED * edited).astype(np.uint8)


def pictures(item: Item, methods: Sequence[Edited]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Title and pixels [H, W, 3] or [H, W] of each panel of one edit.

    Raises:
        UserError: the edit has neither mask nor source, or one of another size (without --source-size resize).
    """
    edit = item.inputs.as_subclass(Tensor).permute(1, 2, 0).numpy()
    source = source_of(item)
    if source is None:
        source_pixels, difference = np.full_like(edit, 255), np.full(edit.shape[:2], 255, np.uint8)
    else:
        source_pixels = source.as_subclass(Tensor).permute(1, 2, 0).numpy()
        apart = np.abs(edit.astype(np.int16) - source_pixels).max(axis=2)
        difference = (apart * (255 / max(int(apart.max()), 1))).astype(np.uint8)
    drawn = [("source" if source is not None else "no source", source_pixels), ("edit", edit)]
    drawn.append(("difference", difference))
    own = item.provenance_mask is not None
    for method in methods[:1] if own else methods:
        mask = method.undilated_mask(item).as_subclass(Tensor)[0].to(torch.float32).numpy()
        name = "own mask" if own else method.key
        drawn += [(name, np.rint(mask * 255).astype(np.uint8)), ("overlay", overlay(edit, mask))]
    return drawn


def plot(folder: Path, rows: Sequence[int], methods: Sequence[Edited], out: Path) -> None:
    """Writes the picture, whole or not at all.

    Raises:
        UserError: no such rows, or an edit that cannot be used.
    """
    split = FolderSplit(folder, edited=True)
    outside = [row for row in rows if not 0 <= row < len(split)]
    if outside:
        raise UserError(f"--rows: {outside[0]} is out of range, must be 0 to {len(split) - 1}")
    lines = [pictures(split[row], methods) for row in rows]
    plt.switch_backend("agg")
    count = max(len(line) for line in lines)
    figure, axes = plt.subplots(len(lines), count, figsize=(1.9 * count, 2 * len(lines)), layout="constrained",
                                squeeze=False)  # fmt: skip
    for axis in axes.flat:
        axis.set_axis_off()
    for row, line, places in zip(rows, lines, axes, strict=True):
        for (title, pixels), axis in zip(line, places, strict=False):
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            axis.set_title(f"{title} {row}" if title == "edit" else title, fontsize=7)
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(out) as aside:
        figure.savefig(aside, dpi=110, format="png")
    plt.close(figure)
    print(out)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after a user's mistake, which is printed as one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=Path, required=True, metavar="DIR", help="folder of edits/metadata.csv")
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 1, 2, 3], help="rows of the table, from 0")
    parser.add_argument("--out", type=Path, default=Path("provenance.png"))
    add_mask_options(parser, several=True)
    given = parser.parse_args(arguments)
    return reported(
        lambda: plot(given.edits, given.rows, [Edited(**options_from(given, m)) for m in given.provenance], given.out)
    )


if __name__ == "__main__":
    sys.exit(main())
