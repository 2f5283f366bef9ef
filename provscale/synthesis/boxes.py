"""Rectangles of a batch as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def outside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Mask [B, 1, H, W] float32: 0 inside each sample's box, 1 outside.

    Args:
        boxes: [B, 4] int64, x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
    """
    x0, y0, x1, y1 = (edge[:, None] for edge in boxes.unbind(dim=1))
    columns = torch.arange(width, device=boxes.device)[None]
    rows = torch.arange(height, device=boxes.device)[None]
    inside_x = (columns >= x0) & (columns < x1)
    inside_y = (rows >= y0) & (rows < y1)
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return 1 - inside.float()
