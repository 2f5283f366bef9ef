"""Image transforms that move image, mask and box together (torchvision transforms v2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from provscale.sample import Item, send


class ItemTransform:
    """Applies a v2 transform to an item's image, provenance mask and spatial annotations with one set of draws.

    It has two parts, so that a loader can leave the second to the device, for a whole batch: `move`, and `normalise`,
    which draws nothing and is the same for every pixel.

    Args:
        geometry: v2 transform of the image as uint8, with everything that belongs to it.
        mean, std: normalisation of the image scaled to [0, 1].
    """

    def __init__(
        self, geometry: Callable[[Any], Any], mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
    ) -> None:
        self.geometry = geometry
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, item: Item) -> Item:
        item = self.move(item)
        item.inputs = self.normalise(item.inputs)
        return item

    def move(self, item: Item) -> Item:
        """All but the normalisation: `inputs` keep the type that the data set and `geometry` give them."""
        moved = self.geometry({"inputs": item.inputs, "mask": item.provenance_mask, **item.annotations})
        item.inputs = moved.pop("inputs").as_subclass(torch.Tensor)
        mask = moved.pop("mask")
        item.provenance_mask = None if mask is None else mask.as_subclass(torch.Tensor).float()
        item.source = None
        item.annotations = {key: self.plain(value) for key, value in moved.items()}
        return item

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [..., C, H, W], contiguous, on the device of `images`, which the host does not wait for.

        Args:
            images: uint8 [..., C, H, W] in [0, 255], or floats in [0, 1].
        """
        if images.dtype == torch.uint8:
            scaled = images.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
        else:
            scaled = functional.to_dtype(images, torch.float32, scale=True).clone(memory_format=torch.contiguous_format)
        # In place: on a CPU a second batch of floats costs more, in fresh pages, than the arithmetic.
        mean, std = (send(value, images.device) for value in (self.mean, self.std))
        return scaled.sub_(mean).div_(std)

    @staticmethod
    def plain(value: Any) -> torch.Tensor:
        """An annotation as an ordinary tensor: float32 for masks and boxes, int64 for classes and groups."""
        if isinstance(value, tv_tensors.BoundingBoxes | tv_tensors.Mask):
            return value.as_subclass(torch.Tensor).float()
        return torch.as_tensor(value)
