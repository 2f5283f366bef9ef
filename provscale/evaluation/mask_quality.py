"""How well extracted provenance masks agree with the true ones, where those are known.

Provenance comes from image differences and is often wrong (paper, supplement section 6): an edit called "unedited"
escapes guidance, an unedited pixel called "edited" is suppressed. So both kinds of pixel are scored.

Masks: bool or float in {0, 1}, 1 = unedited, [B, ...] of any one shape, e.g. [B, 1, H, W]. All results are
fractions in [0, 1]; a fraction of nothing (0 / 0) is NaN, except the IoU of two empty sets, which agree: 1.
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


@dataclass(frozen=True)
class MaskQuality:
    """Agreement of extracted with true provenance masks.

    Attributes:
        iou: float64 [B], IoU of the unedited pixels of each sample.
        mean_iou: mean of `iou` over samples.
        unedited_precision: of the pixels called unedited, the fraction that is; pooled over all samples' pixels.
        unedited_recall: of the unedited pixels, the fraction called so.
        edited_precision: of the pixels called edited, the fraction that is.
        edited_recall: of the edited pixels, the fraction called so.
    """

    iou: Tensor
    mean_iou: float
    unedited_precision: float
    unedited_recall: float
    edited_precision: float
    edited_recall: float


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


def mask_iou(extracted: Tensor, true: Tensor) -> Tensor:
    """IoU of the unedited pixels of each sample, float64 [B]; arguments and errors as in `count_pixels`."""
    return iou_of(count_pixels(extracted, true))


def iou_of(counts: PixelCounts) -> Tensor:
    """IoU of the unedited pixels of each sample, float64 [B]."""
    both = counts.unedited_as_unedited.double()
    either = both + counts.edited_as_unedited + counts.unedited_as_edited
    return torch.where(either > 0, both / either, 1.0)


def quality_of(counts: PixelCounts) -> MaskQuality:
    """All scores of counted samples.

    Raises:
        UserError: no sample.
    """
    if len(counts.unedited_as_unedited) == 0:
        raise UserError("provenance masks: no sample to score; give at least one pair of masks")
    iou = iou_of(counts)
    unedited, missed_edit, lost, edited = (
        int(count.sum())
        for count in (
            counts.unedited_as_unedited,
            counts.edited_as_unedited,
            counts.unedited_as_edited,
            counts.edited_as_edited,
        )
    )
    return MaskQuality(
        iou=iou,
        mean_iou=float(iou.mean()),
        unedited_precision=fraction(unedited, unedited + missed_edit),
        unedited_recall=fraction(unedited, unedited + lost),
        edited_precision=fraction(edited, edited + lost),
        edited_recall=fraction(edited, edited + missed_edit),
    )


def mask_quality(extracted: Tensor, true: Tensor) -> MaskQuality:
    """All scores of one batch of masks; arguments and errors as in `count_pixels` and `quality_of`."""
    return quality_of(count_pixels(extracted, true))


def fraction(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def as_binary(mask: Tensor, name: str) -> Tensor:
    other = (mask != 0) & (mask != 1)
    if bool(other.any()):
        raise UserError(
            f"the {name} provenance mask holds {float(mask[other][0]):g}; allowed are 0 (edited) and 1 (unedited): "
            "binarise it first"
        )
    return mask != 0
