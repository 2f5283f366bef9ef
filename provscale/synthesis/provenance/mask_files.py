"""Provenance masks computed once: files beside the edited images, one folder for each way of making them.

    edits/images/7.png  ->  edits/images/provenance/refined/7.png.png       8-bit gray, 255 = unedited

`write_mask_file` writes them, and the loader takes them instead of making the mask again.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from provscale.errors import UserError
from provscale.files import written_aside


def mask_file(image: Path, key: str) -> Path:
    """Where the mask of an edited image is; `key` says how it was made (`ProvenanceOptions.key`)."""
    return image.parent / "provenance" / key / f"{image.name}.png"


def is_current(mask: Path, image: Path) -> bool:
    """Whether the mask file is there and not older than its image."""
    try:
        return mask.stat().st_mtime >= image.stat().st_mtime
    except OSError:
        return False


def read_mask_file(image: Path, key: str) -> tv_tensors.Mask | None:
    """uint8 mask [1, H, W], 1 = unedited; None when there is none, or one older than its image.

    Raises:
        UserError: the file cannot be read.
    """
    path = mask_file(image, key)
    if not is_current(path, image):
        return None
    values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if values is None:
        raise UserError(f"{path}: cannot be read as an image; remove this file, and the mask is made again")
    return tv_tensors.Mask(torch.from_numpy((values > 127).astype(np.uint8))[None])


def write_mask_file(image: Path, key: str, mask: Tensor) -> None:
    """Writes a mask [1, H, W] in {0, 1}, whole or not at all."""
    path = mask_file(image, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = mask[0].as_subclass(Tensor).numpy().astype(np.uint8) * 255
    with written_aside(path) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")
