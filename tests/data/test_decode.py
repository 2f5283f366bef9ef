"""Decoding gives Pillow's pixels, whatever the file, and Pillow's errors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from provscale.data import decode
from provscale.data.decode import decode_plain, decode_rgb

EXIF = Image.Exif()
EXIF[0x0112] = 6  # "turn by 90 degrees", which neither decoder does by itself


def picture(height: int = 67, width: int = 101) -> Image.Image:
    """Smooth colours with noise: chroma that subsampling changes."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    values = np.stack([rows * 2, columns * 2, 255 - rows - columns], axis=2) + generator.integers(
        0, 40, (height, width, 3)
    )
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


JPEGS: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    **{f"subsampling {kind}": (picture(), {"subsampling": kind}) for kind in (0, 1, 2)},
    **{f"{height} x {width}": (picture(height, width), {}) for height, width in ((1, 1), (7, 9), (16, 17), (375, 500))},
    "progressive": (picture(), {"progressive": True}),
    "low quality": (picture(), {"quality": 20}),
    "stored as RGB": (picture(), {"keep_rgb": True}),
    "turned by EXIF": (picture(), {"exif": EXIF}),
    "restart markers": (picture(), {"restart_marker_blocks": 3}),
    "gray": (picture().convert("L"), {}),
    "CMYK": (picture().convert("CMYK"), {}),
}
OTHERS = {
    "PNG": picture(),
    "PNG with transparency": picture().convert("RGBA"),
    "PNG with a palette": picture().convert("P"),
    "PNG of 1 bit": picture().convert("1"),
    "gray PNG": picture().convert("L"),
}


def by_pillow(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_has_pillows_pixels(name: str, tmp_path: Path) -> None:
    image, options = JPEGS[name]
    image.save(tmp_path / "a.jpg", **options)
    found = decode_rgb(tmp_path / "a.jpg")
    assert found.dtype == torch.uint8
    assert np.array_equal(found.permute(1, 2, 0).numpy(), by_pillow(tmp_path / "a.jpg"))


@pytest.mark.parametrize("name", OTHERS)
def test_so_has_any_other_file(name: str, tmp_path: Path) -> None:
    OTHERS[name].save(tmp_path / "a.png")
    assert np.array_equal(decode_rgb(tmp_path / "a.png").permute(1, 2, 0).numpy(), by_pillow(tmp_path / "a.png"))
    assert np.array_equal(decode_plain(tmp_path / "a.png"), np.array(Image.open(tmp_path / "a.png")))


def test_jpegs_in_colour_and_gray_do_not_need_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way is taken, and gives the order in memory that resizing is fastest in: pixel by pixel."""
    paths = [tmp_path / "colour.jpg", tmp_path / "gray.jpg"]
    picture().save(paths[0])
    picture().convert("L").save(paths[1])
    monkeypatch.delattr(decode, "Image")
    assert decode_rgb(paths[0]).stride() == (1, 303, 3)
    assert decode_rgb(paths[1]).shape == (3, 67, 101)


def test_without_torchvisions_decoder_pillow_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision can be built without libjpeg; it says so with a RuntimeError."""

    def missing(*rest: Any, **named: Any) -> torch.Tensor:
        raise RuntimeError("decode_jpeg: torchvision not compiled with libjpeg support")

    picture().save(tmp_path / "a.jpg")
    monkeypatch.setattr(decode, "decode_jpeg", missing)
    assert np.array_equal(decode_rgb(tmp_path / "a.jpg").permute(1, 2, 0).numpy(), by_pillow(tmp_path / "a.jpg"))


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.99])
def test_damaged_jpegs_are_refused_in_pillows_words(kept: float, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue()[: int(kept * len(buffer.getvalue()))])
    with pytest.raises(Exception) as expected:
        by_pillow(path)
    with pytest.raises(type(expected.value)) as found:
        decode_rgb(path)
    assert str(found.value) == str(expected.value)
