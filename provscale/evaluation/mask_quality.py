"""How well extracted provenance masks agree with the true ones, where those are known.

Provenance comes from image differences and is often wrong (paper, supplement section 6): an edit called "unedited"
escapes guidance, an unedited pixel called "edited" is suppressed. So both kinds of pixel are scored.

Masks: bool or float in {0, 1}, 1 = unedited, [B, ...] of any one shape, e.g. [B, 1, H, W].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from provscale.errors import UserError


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of each sample by extracted and true kind, int64 [B] each. Concatenate batches with `join`."""

    unedited_as_unedited: Tensor
    edited_as_unedited: Tensor
    unedited_as_edited: Tensor
    edited_as_edited: Tensor


def count_pixels(extracted: Tensor, true: Tensor) -> PixelCounts:
    """Counts each sample's pixels.

    Args:
        extracted: [B, ...] mask under test, bool or {0, 1}, 1 = unedited.
        true: the mask known to be right, of the same shape.

    Raises:
        UserError: different shapes, no batch dimension, or values other than 0 and 1.
    """
    if extracted.shape != true.shape or extracted.ndim < 2:
        raise UserError(
            f"provenance masks have shapes {tuple(extracted.shape)} (extracted) and {tuple(true.shape)} (true); "
            "both must be [B, ...] and equal"
        )
    called = as_binary(extracted, "extracted").flatten(1)
    is_so = as_binary(true, "true").flatten(1)
    return PixelCounts(
        unedited_as_unedited=(called & is_so).sum(dim=1),
        edited_as_unedited=(called & ~is_so).sum(dim=1),
        unedited_as_edited=(~called & is_so).sum(dim=1),
        edited_as_edited=(~called & ~is_so).sum(dim=1),
    )


def join(parts: list[PixelCounts]) -> PixelCounts:
    """The counts of several batches as those of one."""
    return PixelCounts(
        torch.cat([part.unedited_as_unedited for part in parts]),
        torch.cat([part.edited_as_unedited for part in parts]),
        torch.cat([part.unedited_as_edited for part in parts]),
        torch.cat([part.edited_as_edited for part in parts]),
    )


def iou_of(counts: PixelCounts) -> Tensor:
    """IoU of the unedited pixels of each sample, float64 [B] in [0, 1]; two empty sets agree: 1."""
    both = counts.unedited_as_unedited.double()
    either = both + counts.edited_as_unedited + counts.unedited_as_edited
    return torch.where(either > 0, both / either, 1.0)


def as_binary(mask: Tensor, name: str) -> Tensor:
    other = (mask != 0) & (mask != 1)
    if bool(other.any()):
        raise UserError(
            f"the {name} provenance mask holds {float(mask[other][0]):g}; allowed are 0 (edited) and 1 (unedited): "
            "binarise it first"
        )
    return mask != 0
