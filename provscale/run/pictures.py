"""Pictures of what guidance does: input, provenance mask and input gradient of the same few training samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from provscale.files import written_aside


@dataclass
class Pictures:
    """N samples, as arrays that need no network to be looked at again.

    Attributes:
        images: uint8 [N, H, W, 3].
        masks: float32 [N, H, W] in [0, 1], 1 = from A / unedited.
        gradients: float32 [N, H, W], norm over channels of the first target's input gradient.
        names: N names.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.float32]
    gradients: NDArray[np.float32]
    names: list[str]

    def save(self, path: Path) -> None:
        with written_aside(path) as aside, aside.open("wb") as file:
            np.savez_compressed(
                file, images=self.images, masks=self.masks, gradients=self.gradients, names=np.array(self.names)
            )

    @classmethod
    def load(cls, path: Path) -> Pictures:
        with np.load(path, allow_pickle=False) as content:
            return cls(content["images"], content["masks"], content["gradients"], content["names"].tolist())


def to_pictures(
    inputs: Tensor,
    masks: Tensor,
    gradients: Tensor,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    names: list[str],
) -> Pictures | None:
    """From tensors [N, 3, H, W], [N, 1, H, W] and [N, 3, H, W] on the CPU; None if the inputs are no images."""
    # Skeletons of three persons have this shape, too; only images are normalised by channel.
    if inputs.dim() != 4 or inputs.shape[1] != 3 or mean is None or std is None or len(mean) != 3:
        return None
    pixels = inputs * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    images = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    size = inputs.shape[-2:]
    return Pictures(
        images, masks.mean(dim=1).expand(-1, *size).float().numpy(), gradients.norm(dim=1).float().numpy(), names
    )


def mask_image(mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Gray uint8 [H, W, 3]; white = unedited / from A."""
    return np.repeat((mask * 255).round().astype(np.uint8)[..., None], 3, axis=2)


def gradient_image(gradient: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour uint8 [H, W, 3]; the 99th percentile of this sample is the brightest."""
    bright = max(float(np.percentile(gradient, 99)), 1e-12)
    colours = mpl.colormaps["magma"](np.clip(gradient / bright, 0, 1))
    return (colours[..., :3] * 255).astype(np.uint8)
