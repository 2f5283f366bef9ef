"""Image transforms that move image, mask and box together (torchvision transforms v2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from provscale.sample import Item


class ItemTransform:
    """Applies a v2 transform to an item's image, provenance mask and spatial annotations with one set of draws.

    Args:
        geometry: v2 transform of the image as uint8, with everything that belongs to it.
        mean, std: normalisation of the image scaled to [0, 1].
    """

    def __init__(
        self, geometry: Callable[[Any], Any], mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
    ) -> None:
        self.geometry = geometry
        self.finish = v2.Compose([v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                                  v2.Normalize(list(mean), list(std))])  # fmt: skip

    def __call__(self, item: Item) -> Item:
        moved = self.finish(self.geometry({"inputs": item.inputs, "mask": item.provenance_mask, **item.annotations}))
        item.inputs = moved.pop("inputs").as_subclass(torch.Tensor)
        mask = moved.pop("mask")
        item.provenance_mask = None if mask is None else mask.as_subclass(torch.Tensor).float()
        item.source = None
        item.annotations = {key: self.plain(value) for key, value in moved.items()}
        return item

    @staticmethod
    def plain(value: Any) -> torch.Tensor:
        """An annotation as an ordinary tensor: float32 for masks and boxes, int64 for classes and groups."""
        if isinstance(value, tv_tensors.BoundingBoxes | tv_tensors.Mask):
            return value.as_subclass(torch.Tensor).float()
        return torch.as_tensor(value)
