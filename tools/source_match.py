"""Is an edited image an edit of the image that it is said to be? By similarity to the training images of its class.

Generators keep a part of their source where it was: its layout, or at least the object. So a small gray copy is cut
into blocks, and two images are as similar as those blocks are that correlate best.

Shapes: N images, blocks [64, 64]: 8 x 8 blocks of 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torchvision.transforms.v2 import functional

from provscale.tracking.terminal import console

T = TypeVar("T")
GRID, SIDE = 8, 8
"""Blocks per side, pixels per side of a block."""
COMPARED = 8
"""How many of the 64 blocks decide."""
FLAT = 1.0
"""Standard deviation in levels below which a block has nothing to compare."""
Blocks = NDArray[np.float32]


def blocks(image: Tensor) -> Blocks:
    """float32 [64, 64] of an image uint8 [3, H, W]: every block of mean 0 and length 1, or zeros where it is flat."""
    whole = [GRID * SIDE] * 2
    gray = functional.resize(image.as_subclass(Tensor), whole, antialias=True).float().mean(dim=0).numpy()
    cut = gray.reshape(GRID, SIDE, GRID, SIDE).transpose(0, 2, 1, 3).reshape(GRID * GRID, SIDE * SIDE)
    centred = cut - cut.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.where(length > FLAT * SIDE, centred / np.maximum(length, 1e-6), 0).astype(np.float32)


def similarities(edit: Blocks, among: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N] in [-1, 1]: the mean of the 8 largest correlations of blocks at one place, to images [N, 64, 64]."""
    correlation = np.einsum("nbp,bp->nb", among, edit)
    return np.sort(correlation, axis=1)[:, -COMPARED:].mean(axis=1)


@dataclass(frozen=True)
class Match:
    """How similar an edit is to its supposed source, and to the nearest other image; `other` is its position."""

    similarity: float
    other: int
    other_similarity: float

    def doubt(self, least: float, margin: float) -> str:
        """Why the source is not certain; "" if it is."""
        if self.other_similarity > self.similarity:
            return "another image of the class is more similar"
        if self.similarity < least:
            return f"less similar than {least:g}"
        if self.similarity - self.other_similarity < margin:
            return f"another image of the class is as similar, within {margin:g}"
        return ""


def match(edit: Blocks, source: int, among: NDArray[np.float32]) -> Match:
    """Compares an edit with images [N, 64, 64], of which its supposed source has the position `source`."""
    found = similarities(edit, among)
    own = float(found[source])
    found[source] = -1.0
    other = int(found.argmax())
    return Match(own, other, float(found[other]))


def in_threads(make: Callable[[int], T], count: int, what: str, workers: int) -> Sequence[T]:
    """`make` of 0 to count - 1, in order, with a progress bar. Raises what `make` raises."""
    with ThreadPoolExecutor(workers) as pool:
        made = pool.map(make, range(count))
        return list(track(made, what, count, console=console, disable=not console.is_terminal))
