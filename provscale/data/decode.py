"""Decoding image files to the pixels that Pillow gives; a JPEG in about half of Pillow's time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from provscale.errors import UserError

JPEG = b"\xff\xd8\xff"
Decoded = TypeVar("Decoded", Tensor, np.ndarray)


def decode_rgb(path: Path) -> Tensor:
    """uint8 [3, H, W], RGB; in memory pixel by pixel, which is the order that resizing is fastest in.

    A JPEG in colour or gray is decoded by torchvision straight into a tensor. Any other file goes through Pillow, and
    so does a JPEG that torchvision refuses, so that whatever is wrong with a file is said in Pillow's words. Both use
    libjpeg-turbo with the same settings: the pixels are equal. Neither turns an image by its EXIF orientation.

    Raises:
        Exception: the file is no image, or a damaged one; Pillow's decoders raise many types.
    """
    content = np.fromfile(path, dtype=np.uint8)
    if content[:3].tobytes() == JPEG:
        with contextlib.suppress(RuntimeError):
            decoded = decode_jpeg(torch.from_numpy(content), mode=ImageReadMode.UNCHANGED)
            if decoded.shape[0] == 3:
                return decoded
            if decoded.shape[0] == 1:
                return decoded.repeat(3, 1, 1)
    with Image.open(path) as image:
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_plain(path: Path) -> np.ndarray:
    """The file's values as they are stored, [H, W] or [H, W, C]; for masks."""
    with Image.open(path) as image:
        return np.array(image)


def read_image(path: Path, decode: Callable[[Path], Decoded]) -> Decoded:
    """`decode(path)`. Raises UserError, with the decoder's reason, when that fails."""
    try:
        return decode(path)
    except Exception as error:  # Pillow's decoders raise many types
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as an image ({reason}); replace or remove this file") from None
