"""What a textured digit's object is: the digit's stroke, or a plate with the digit on it, as a number on a sign.

A stroke is two or three pixels wide and covers 6 % of an image of 32 pixels; much of what tells digits apart lies
beside it. A plate encloses its digit: outside it is nothing that the label depends on.

`side` is the side of the object's frame in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

OBJECTS = ("stroke", "plate")
PLATE_NOISE = 8.0
"""Standard deviation of a plate's pixels around their colour, of 255."""

Drawing = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""Pixels uint8 [side, side, 3], RGB, and which of them are the object's, bool [side, side]."""


def draw_stroke(digit: NDArray[np.uint8], side: int, ink: tuple[int, int], generator: np.random.Generator) -> Drawing:
    """The digit's ink in one colour; the object is the ink.

    Args:
        digit: uint8 [28, 28], 255 = ink.
        ink: (lowest, highest) value of the colour's channels, each drawn uniformly.
    """
    mask = cv2.resize(digit, (side, side), interpolation=cv2.INTER_LINEAR) > 127
    colour = generator.integers(ink[0], ink[1] + 1, size=3).astype(np.uint8)
    return np.broadcast_to(colour, (side, side, 3)), mask


def draw_plate(
    digit: NDArray[np.uint8], side: int, plate: tuple[int, int], contrast: int, generator: np.random.Generator
) -> Drawing:
    """The digit on an opaque, slightly noisy plate; the object is the plate.

    Args:
        digit: uint8 [28, 28], 255 = ink.
        plate: (lowest, highest) value of the plate's colour channels, each drawn uniformly.
        contrast: what is added to the plate's colour where there is ink; the sum is clipped to 0 and 255.
    """
    share = cv2.resize(digit, (side, side), interpolation=cv2.INTER_AREA)[..., None] / np.float32(255)
    colour = generator.uniform(plate[0], plate[1], size=3)
    inked = np.clip(colour + contrast, 0, 255)
    pixels = colour * (1 - share) + inked * share + generator.normal(0, PLATE_NOISE, size=(side, side, 3))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), np.ones((side, side), dtype=bool)
