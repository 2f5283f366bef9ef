"""Provenance mask quality against hand counts."""

from __future__ import annotations

import math

import pytest
import torch

from provscale.errors import UserError
from provscale.evaluation.mask_quality import count_pixels, join, mask_iou, mask_quality, quality_of

# 1 = unedited. Sample 0: 2 right unedited, 1 edit missed, 1 unedited lost, 0 right edited. Sample 1: all right,
# 1 unedited and 3 edited.
EXTRACTED = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]], [[[1.0, 0.0], [0.0, 0.0]]]])
TRUE = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]]], [[[1.0, 0.0], [0.0, 0.0]]]])


def test_against_hand_counts() -> None:
    quality = mask_quality(EXTRACTED, TRUE)
    assert quality.iou.tolist() == [2 / 4, 1.0]
    assert quality.mean_iou == 0.75
    assert quality.unedited_precision == 3 / 4  # 2 + 1 of 3 + 1 pixels called unedited
    assert quality.unedited_recall == 3 / 4  # 2 + 1 of 3 + 1 unedited pixels
    assert quality.edited_precision == 3 / 4  # 0 + 3 of 1 + 3 pixels called edited
    assert quality.edited_recall == 3 / 4  # 0 + 3 of 1 + 3 edited pixels


def test_precision_and_recall_are_not_swapped() -> None:
    # Everything is called unedited, 1 pixel of 4 is: precision 1/4, recall 1, no edit found.
    quality = mask_quality(torch.ones(1, 4), torch.tensor([[True, False, False, False]]))
    assert (quality.unedited_precision, quality.unedited_recall) == (1 / 4, 1.0)
    assert math.isnan(quality.edited_precision)
    assert quality.edited_recall == 0.0


def test_two_empty_masks_agree() -> None:
    assert mask_iou(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).tolist() == [1.0]
    assert mask_iou(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).tolist() == [0.0]


def test_batches_joined_give_the_scores_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    extracted, true = torch.rand(2, 7, 1, 5, 5, generator=generator) < 0.4
    joined = quality_of(join([count_pixels(extracted[:2], true[:2]), count_pixels(extracted[2:], true[2:])]))
    whole = mask_quality(extracted, true)
    assert torch.equal(joined.iou, whole.iou)
    assert (joined.mean_iou, joined.unedited_precision, joined.unedited_recall, joined.edited_precision) == (
        whole.mean_iou,
        whole.unedited_precision,
        whole.unedited_recall,
        whole.edited_precision,
    )


@pytest.mark.parametrize(
    ("extracted", "true", "message"),
    [
        (torch.ones(1, 4), torch.ones(1, 5), r"shapes \(1, 4\) \(extracted\) and \(1, 5\) \(true\)"),
        (torch.ones(4), torch.ones(4), "must be"),
        (torch.full((1, 4), 0.5), torch.ones(1, 4), "extracted provenance mask holds 0.5"),
        (torch.ones(1, 4), torch.full((1, 4), math.nan), "true provenance mask holds nan"),
        (torch.ones(0, 4), torch.ones(0, 4), "no sample"),
    ],
)
def test_bad_masks_are_user_errors(extracted: torch.Tensor, true: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mask_quality(extracted, true)
