"""CutMix (Yun et al., ICCV 2019), with its mask kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from provscale.errors import UserError
from provscale.sample import Sample, send
from provscale.synthesis.base import SYNTHESES, Mixing, mixed
from provscale.synthesis.boxes import clipped_box, outside_boxes


def cutmix_box(generator: np.random.Generator, height: int, width: int, beta: float) -> tuple[int, int, int, int]:
    """One box x0, y0, x1, y1 (exclusive ends): lambda ~ Beta(b, b), sides sqrt(1 - lambda) of the image's, centre
    uniform, clipped to the image."""
    ratio = np.sqrt(1 - generator.beta(beta, beta))
    cut_h, cut_w = int(height * ratio), int(width * ratio)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    return clipped_box(y, x, cut_h, cut_w, height, width)


@SYNTHESES.register("cutmix")
@dataclass
class CutMix(Mixing):
    """Pastes a box of B into A, one box per sample. lambda is the share of A recomputed from the clipped box.

    Args:
        beta: parameter b of Beta(b, b); the paper's peers use 1.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise UserError(f"synthesis.options.beta: is {self.beta}, must be above 0 and finite")

    def mix(self, sample: Sample, partners: Sample, generators: list[np.random.Generator]) -> Sample:
        height, width = sample.inputs.shape[-2:]
        boxes = torch.tensor([cutmix_box(generator, height, width, self.beta) for generator in generators])
        mask = outside_boxes(send(boxes, sample.inputs.device), height, width)
        inputs = torch.where(mask.bool(), sample.inputs, partners.inputs)
        return mixed(sample, partners, inputs, mask, mask.mean(dim=(1, 2, 3)))
