"""Makes edits harder: of each object a smooth part is repainted, as a generator that does not keep to the background.

    python tools/benchmark/repaint_edits.py DIR/edits OUT

The part (15 to 35 % of the object) gets another hue, saturation and brightness, and its texture is displaced by some
pixels. OUT becomes a manifest like DIR/edits, whose object masks are without the repainted part: tools/check_masks.py
measures with it. What is drawn depends on the row alone.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from provscale.data.images.folder import FolderSplit
from provscale.data.images.manifest import write_table
from provscale.errors import UserError, reported
from provscale.randomness import numpy_generator
from provscale.synthesis.provenance.base import Pixels, Values, as_pixels


def repainted(image: Pixels, mask: Pixels, generator: np.random.Generator) -> tuple[Pixels, Pixels]:
    """The image [H, W, 3] with a part of the object repainted, and the object mask [H, W] without that part."""
    field = smooth_field(generator, 5, mask.shape)
    part = (mask > 0) & (field > np.quantile(field[mask > 0], 1 - generator.uniform(0.15, 0.35)))
    side = min(mask.shape)
    shift = [smooth_field(generator, 6, mask.shape) * 3 * side / 128 for _ in range(2)]
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]].astype(np.float32)
    moved = cv2.remap(image, x + shift[0], y + shift[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    hue, saturation, value = cv2.split(cv2.cvtColor(moved, cv2.COLOR_RGB2HSV).astype(np.float32))
    hue = (hue + generator.integers(30, 150)) % 180
    saturation = saturation * generator.uniform(0.7, 1.3) + generator.integers(20, 90)
    value = value * generator.uniform(0.7, 1.3) + generator.integers(-40, 60)
    paint = cv2.merge([channel.clip(0, 255).astype(np.uint8) for channel in (hue, saturation, value)])
    share = cv2.GaussianBlur(part.astype(np.float32), (0, 0), 1)[..., None]
    mixed = image * (1 - share) + cv2.cvtColor(paint, cv2.COLOR_HSV2RGB) * share
    return mixed.clip(0, 255).astype(np.uint8), ((mask > 0) & ~part).astype(np.uint8)


def smooth_field(generator: np.random.Generator, cells: int, shape: tuple[int, ...]) -> Values:
    """Normal noise of cells x cells, interpolated: float32 of `shape`."""
    noise = generator.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def repaint_all(edits: Path, out: Path) -> None:
    split = FolderSplit(edits, edited=True, annotated=True)
    if not split.annotates("object_mask_file_name"):
        raise UserError(f"{split.metadata}: has no column object_mask_file_name, which says where the object is")
    if out.exists():
        raise UserError(f"{out}: exists already; choose another folder")
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True)
    with (edits / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        item = split[index]
        truth = item.annotations["object_mask"][0].numpy().astype(np.uint8)
        image, mask = repainted(as_pixels(item.inputs), truth, numpy_generator(0, "repaint", index))
        row["file_name"], row["object_mask_file_name"] = f"images/{index:05d}.png", f"masks/{index:05d}.png"
        Image.fromarray(image).save(out / row["file_name"])
        Image.fromarray(mask * 255).save(out / row["object_mask_file_name"])
        if row.get("source_file_name"):
            row["source_file_name"] = os.path.relpath(edits / row["source_file_name"], out)
    write_table(out / "metadata.csv", rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="repaint_edits.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("edits", type=Path, help="folder of a manifest with object_mask_file_name")
    parser.add_argument("out", type=Path, help="folder to make")
    options = parser.parse_args(arguments)
    return reported(lambda: repaint_all(options.edits, options.out))


if __name__ == "__main__":
    sys.exit(main())
