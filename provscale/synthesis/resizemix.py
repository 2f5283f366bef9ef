"""ResizeMix (Qin et al., 2020), with its mask kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.sample import Sample, send
from provscale.synthesis.base import SYNTHESES, Mixing, mixed
from provscale.synthesis.boxes import clipped_box, outside_boxes


def resize_weights(starts: Tensor, ends: Tensor, size: int) -> Tensor:
    """Matrices that shrink a line of `size` pixels into [start, end) of a line of the same size.

    Row o of matrix b holds the weights of the source pixels for output pixel o: a triangle filter as wide as the
    reduction (bilinear with antialiasing, as `torch.nn.functional.interpolate(..., antialias=True)`), zero outside
    the target range. One matrix a sample makes any mix of sizes two batched matrix products.

    Args:
        starts, ends: [B] int64, ends exclusive, 1 <= end - start <= size.

    Returns:
        [B, size, size] float32.
    """
    length = (ends - starts)[:, None, None]
    pixels = torch.arange(size, device=starts.device)
    output = pixels[None, :, None] - starts[:, None, None]
    source = pixels[None, None, :]
    # Output pixel o has its centre at (o + 1/2) size / length in the source, and the filter reaches size / length to
    # both sides. Times 2 length everything is an integer, so nothing is rounded before the division.
    distance = ((2 * source + 1) * length - (2 * output + 1) * size).abs()
    weights = (2 * size - distance).clamp(min=0) * ((output >= 0) & (output < length))
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1)


def nearest_weights(starts: Tensor, ends: Tensor, size: int) -> Tensor:
    """As `resize_weights`, each output pixel from one source pixel, floor(o size / length), as PyTorch's `nearest`."""
    length = (ends - starts)[:, None, None]
    pixels = torch.arange(size, device=starts.device)
    output = pixels[None, :, None] - starts[:, None, None]
    chosen = torch.div(output * size, length.clamp(min=1), rounding_mode="floor")
    return ((chosen == pixels[None, None, :]) & (output >= 0) & (output < length)).float()


FILTERS = {"bilinear": resize_weights, "nearest": nearest_weights}


@SYNTHESES.register("resizemix")
@dataclass
class ResizeMix(Mixing):
    """Shrinks the whole of B into a box of A, whose sides are a uniform share of A's. lambda = 1 - share of the box.

    Args:
        low, high: range of that share; the paper's peers use 0.1 and 0.8.
        placement: `inside`, uniform over the places inside A (the description of the paper); `clipped`, around a
            uniform centre and clipped to A, into which the whole of B is squashed (OpenMixup's code).
        interpolation: `bilinear`, with antialiasing; `nearest` (OpenMixup's default).
    """

    low: float = 0.1
    high: float = 0.8
    placement: Literal["inside", "clipped"] = "inside"
    interpolation: Literal["bilinear", "nearest"] = "bilinear"

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise UserError(f"synthesis.options: low {self.low} and high {self.high} must satisfy 0 < low <= high <= 1")

    def mix(self, sample: Sample, partners: Sample, generators: list[np.random.Generator]) -> Sample:
        height, width = sample.inputs.shape[-2:]
        device = sample.inputs.device
        boxes = send(torch.tensor([self.box(generator, height, width) for generator in generators]), device)
        mask = outside_boxes(boxes, height, width)
        weights = FILTERS[self.interpolation]
        down = weights(boxes[:, 1], boxes[:, 3], height).to(sample.inputs.dtype)
        across = weights(boxes[:, 0], boxes[:, 2], width).to(sample.inputs.dtype)
        pasted = down[:, None] @ partners.inputs @ across[:, None].transpose(-1, -2)
        inputs = torch.where(mask.bool(), sample.inputs, pasted)
        return mixed(sample, partners, inputs, mask, mask.mean(dim=(1, 2, 3)))

    def box(self, generator: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        scale = generator.uniform(self.low, self.high)
        box_h, box_w = max(int(height * scale), 1), max(int(width * scale), 1)
        if self.placement == "clipped":
            y, x = int(generator.integers(height)), int(generator.integers(width))
            return clipped_box(y, x, box_h, box_w, height, width)
        y, x = int(generator.integers(height - box_h + 1)), int(generator.integers(width - box_w + 1))
        return x, y, x + box_w, y + box_h
