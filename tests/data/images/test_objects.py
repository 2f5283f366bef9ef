"""A digit on a plate: the plate is the object, it encloses its digit, and an edit keeps all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from provscale.data.images.digits import DigitLook, TexturedDigits
from provscale.data.images.objects import PLATE_NOISE, draw_plate
from provscale.errors import UserError
from provscale.synthesis.edited import Edited

NUMBER = 48


def plates(split: str = "train", samples: int = NUMBER, **changes: object) -> TexturedDigits:
    look = {"textures": ("metal", "wood"), "object": "plate", "digit_scale": (0.6, 0.8), **changes}
    return TexturedDigits(split, 32, 0, samples, DigitLook(**look))  # type: ignore[arg-type]


def test_pixels_of_a_plate() -> None:
    """At 28 pixels nothing is resized: colour + contrast x ink / 255, but for the noise (mean 0, its own width)."""
    digit = np.random.default_rng(1).integers(0, 256, (28, 28)).astype(np.uint8)
    pixels, inside = draw_plate(digit, 28, (60, 60), 100, np.random.default_rng(0))
    noise = pixels - (60 + 100 * (digit[..., None] / 255))
    assert inside.all()
    assert noise.std() == pytest.approx(PLATE_NOISE, rel=0.05)
    assert abs(noise.mean()) < 4 * PLATE_NOISE / noise.size**0.5


def test_channels_lie_in_the_range_and_are_clipped() -> None:
    blank, full = np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)
    for number in range(20):
        colour = draw_plate(blank, 28, (20, 100), 130, np.random.default_rng(number))[0].mean(axis=(0, 1))
        assert colour.min() > 20 - 2
        assert colour.max() < 100 + 2
    assert draw_plate(full, 28, (200, 200), 200, np.random.default_rng(0))[0].mean() > 255 - PLATE_NOISE


def test_the_object_is_a_square_that_fills_half_of_the_frame() -> None:
    """Sides 19 to 26 of 32 pixels; the mean of side^2 for a uniform side: (0.8^3 - 0.6^3) / (3 x 0.2) = 0.493."""
    data = plates(samples=400)
    areas = []
    for index in range(400):
        mask = data[index].annotations["object_mask"][0].bool()
        x0, y0, x1, y1 = data[index].annotations["box"][0].int().tolist()
        assert x1 - x0 == y1 - y0
        assert 19 <= x1 - x0 <= 26
        assert mask[y0:y1, x0:x1].all()
        areas.append(float(mask.float().mean()))
    assert np.mean(areas) == pytest.approx(0.493, abs=0.02)


def test_an_edit_keeps_the_plate_and_its_difference_mask_is_the_plate() -> None:
    train, edits = plates(), plates("edits")
    for index in range(NUMBER):
        source, edit = train[index], edits[index]
        plate = edit.annotations["object_mask"][0].bool()
        assert torch.equal(edit.inputs[:, plate], source.inputs[:, plate])
        provenance = Edited().prepare(edit).provenance_mask
        assert provenance is not None
        unedited = provenance[0].bool()
        assert unedited[plate].all()
        assert unedited[~plate].float().mean() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object": "plat"}, "object: is 'plat', must be one of: stroke, plate"),
        ({"plate": (100, 20)}, r"plate: is \[100, 20\]"),
        ({"contrast": 300}, "contrast: is 300"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plates(**change)
