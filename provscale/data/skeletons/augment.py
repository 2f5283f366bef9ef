"""Joint augmentation of skeleton clips: what the authors of SKP name in their later paper (SLPS, arXiv 2608.25701).

P person slots, T frames, E = 3V elements of a skeleton: x, y from -1 to 1 over the frame, and confidence. Missing
keypoints stay zeros with `valid_mask` 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.sample import Item


@dataclass(frozen=True)
class Augmentation:
    """How far a training clip is changed; 0 leaves it as it is. The paper's: 0.2, 0.2, 5; the others are unknown.

    Args:
        scale: the whole clip grows or shrinks about the frame's centre by a factor of 1 - scale to 1 + scale.
        shift: it moves by up to this share of the frame's width and height.
        rotation: it turns about the frame's centre by up to so many degrees, in coordinates that make the frame square.
        crop: largest share of a clip's frames that is cut off, at its beginning and end together.
        drop: largest share of keypoints that is missing in a run of frames, the same ones for every person.

    Raises:
        UserError: a value out of its range.
    """

    scale: float = 0.0
    shift: float = 0.0
    rotation: float = 0.0
    crop: float = 0.0
    drop: float = 0.0

    def __post_init__(self) -> None:
        for name, limit in (("scale", 1), ("shift", 1), ("rotation", 180), ("crop", 1), ("drop", 1)):
            value = getattr(self, name)
            if not 0 <= value < limit + (name in ("shift", "rotation", "drop")) * 1e-9:
                raise UserError(f"data.options.{name}: is {value}, must be from 0 to {limit}")

    def __call__(self, item: Item) -> Item:
        """Draws from PyTorch's global generator, the same numbers whatever is switched on. `inputs` float [P, T, E]."""
        scale, turn, length, start, run, share = torch.rand(6).tolist()
        shift = torch.rand(2)
        frames, keypoints = item.inputs.shape[1], item.inputs.shape[2] // 3
        order = torch.rand(keypoints).argsort()
        kept = max(round(frames * (1 - length * self.crop)), 1)
        first = int(start * (frames - kept + 1))
        item.inputs = item.inputs[:, first : first + kept]
        if item.valid_mask is not None:
            item.valid_mask = item.valid_mask[:, first : first + kept]
        points = item.inputs.unflatten(2, (keypoints, 3))
        there = points[..., 2:] > 0
        factor = 1 + self.scale * (2 * scale - 1)
        angle = math.radians(self.rotation) * (2 * turn - 1)
        matrix = factor * torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        # The frame is 2 wide and 2 high.
        places = points[..., :2] @ matrix + 2 * self.shift * (2 * shift - 1)
        missing = self.missing(kept, keypoints, order, share, run)
        there = there & ~missing[None, :, :, None]
        item.inputs = (torch.cat([places, points[..., 2:]], dim=3) * there).flatten(2)
        if item.valid_mask is not None:
            item.valid_mask = item.valid_mask * there.expand(*there.shape[:3], 3).flatten(2)
        return item

    def missing(self, frames: int, keypoints: int, order: Tensor, share: float, run: float) -> Tensor:
        """bool [T, V]: the first keypoints of `order`, in a run of half of the frames that starts anywhere."""
        dropped = torch.zeros(keypoints, dtype=torch.bool)
        dropped[order[: round(keypoints * share * self.drop)]] = True
        length = max(frames // 2, 1)
        first = int(run * (frames - length + 1))
        within = torch.zeros(frames, dtype=torch.bool)
        within[first : first + length] = True
        return within[:, None] & dropped
