"""Provenance of a generative edit: where the edited image still equals its source (paper, supplement section 6)."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from provscale.errors import UserError


def difference_mask(source: Tensor, edited: Tensor, smoothing: float = 0.0) -> tv_tensors.Mask:
    """The provenance mask of an edited image: per-pixel difference, binarised by Otsu's threshold.

    The difference of a pixel is the largest absolute difference over its channels, because an edit that changes
    only the hue of a pixel is an edit; a mean over channels would shrink it.

    Args:
        source: image before the edit, [C, H, W], uint8 in [0, 255] or float in [0, 1].
        edited: image after the edit, same shape and dtype.
        smoothing: standard deviation, in pixels, of a Gaussian applied to the difference before thresholding.
            0 is the paper's form. Above 0, lone pixels that agree by chance no longer count as unedited.

    Returns:
        uint8 mask [1, H, W], 1 = unedited. Equal images give all ones.

    Raises:
        UserError: the images differ in size, or `smoothing` is negative.
    """
    if source.shape != edited.shape:
        raise UserError(
            f"edited image has shape {tuple(edited.shape)}, its source {tuple(source.shape)}; both must have the same "
            "size, so resize one of them before training"
        )
    if smoothing < 0:
        raise UserError(f"smoothing is {smoothing:g}; allowed: 0 (off) or a standard deviation in pixels")
    before, after = (functional.to_dtype(image, torch.uint8, scale=True) for image in (source, edited))
    channels = (torch.maximum(before, after) - torch.minimum(before, after)).as_subclass(Tensor)
    difference = functools.reduce(torch.maximum, channels.unbind()).numpy()
    if smoothing > 0:
        difference = np.asarray(cv2.GaussianBlur(difference, (0, 0), smoothing), dtype=np.uint8)
    # THRESH_BINARY_INV: 1 where the difference is at most the threshold.
    _, unedited = cv2.threshold(difference, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    return tv_tensors.Mask(torch.from_numpy(np.asarray(unedited, dtype=np.uint8))[None])
