"""Rectangles of a batch as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_box(y: int, x: int, box_height: int, box_width: int, height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 (exclusive ends) of a box around (y, x), both sides rounded down to even, clipped to the image."""
    x0, x1 = max(x - box_width // 2, 0), min(x + box_width // 2, width)
    y0, y1 = max(y - box_height // 2, 0), min(y + box_height // 2, height)
    return x0, y0, x1, y1


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
