"""A report's pictures: what the runs' networks look at, side by side."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from provscale.run.localised import LocalisedPictures
from provscale.run.pictures import Pictures, gradient_image, mask_image
from provscale.run.report_style import table

text = html.escape
Cell = NDArray[np.uint8]


def localised_pictures(shown: dict[str, LocalisedPictures]) -> str:
    """Rows: the evaluated images that all runs show. Columns: image, then score map and boxes of each run, then input
    gradient of each run. Empty without pictures."""
    if not shown:
        return ""
    first, *others = shown.values()
    common = [name for name in first.names.tolist() if all(name in other.names for other in others)]
    title = "<h2>Where the network finds the object</h2>"
    if not common:
        return title + "<p>The runs show no image in common: images are drawn by the seed.</p>"
    heads = ["image", *(f"score map: {name}" for name in shown), *(f"gradient: {name}" for name in shown)]
    rows = []
    for name in common:
        places = {arm: found.names.tolist().index(name) for arm, found in shown.items()}
        place = first.names.tolist().index(name)
        cells = [first.images[place]]
        cells += [found.found(places[arm]) for arm, found in shown.items()]
        cells += [found.gradient(places[arm]) for arm, found in shown.items()]
        notes = ["", *(found.verdict(places[arm]) for arm, found in shown.items()), *[""] * len(shown)]
        rows.append(sample_row(f"{name.rsplit('/', 1)[-1]}: {first.classes[place]}", heads, cells, notes))
    return (
        f"{title}<p>Images of the split that chose the best epoch, with its weights: the score map of the true "
        "class, its true box in white and in orange the box of the map's largest contour, at the score threshold that "
        "is best for that split; and the input gradient of the class logit, scaled to its own 99th percentile.</p>"
        + picture_table(heads, rows)
    )


def training_pictures(shown: dict[str, Pictures]) -> str:
    """Rows: samples. Columns: input, mask, input gradient of each run. Empty without pictures."""
    if not shown:
        return ""
    first = next(iter(shown.values()))
    heads = ["input", "provenance", *(f"gradient: {name}" for name in shown)]
    rows = []
    for index in range(min(len(found.images) for found in shown.values())):
        cells = [first.images[index], mask_image(first.masks[index])]
        cells += [gradient_image(found.gradients[index]) for found in shown.values()]
        rows.append(sample_row(str(first.names[index]), heads, cells))
    return (
        "<h2>Where the network looks</h2><p>Training samples: input, provenance mask (white = unedited, or from source "
        "A), and the input gradient of the class logit, each scaled to its own 99th percentile.</p>"
        + picture_table(heads, rows)
    )


def picture_table(heads: Sequence[str], rows: Sequence[str]) -> str:
    return table([f"<tr>{''.join(f'<th scope=col>{text(head)}</th>' for head in heads)}</tr>", *rows], "pictures")


def sample_row(name: str, heads: Sequence[str], cells: Sequence[Cell], notes: Sequence[str] = ()) -> str:
    """A row of pictures, each with its note below it where there are notes, and a row with the sample's name."""
    parts = [image(cell, f"{head} of {name}") for cell, head in zip(cells, heads, strict=True)]
    if notes:
        parts = [f"{part}<small>{text(note)}</small>" for part, note in zip(parts, notes, strict=True)]
    return (
        f"<tr>{''.join(f'<td>{part}</td>' for part in parts)}</tr>"
        f"<tr class=soft><td colspan={len(heads)}><small>{text(name)}</small></td></tr>"
    )


def image(pixels: Cell, label: str) -> str:
    content = io.BytesIO()
    imsave(content, pixels, format="png")
    data = base64.b64encode(content.getvalue()).decode()
    kind = "class=pixels " if pixels.shape[1] < 100 else ""
    return f'<img {kind}alt="{text(label)}" src="data:image/png;base64,{data}">'
