"""Provenance mask quality against hand counts."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from provscale.errors import UserError
from provscale.evaluation.mask_quality import PixelCounts, count_pixels, iou_of, join

# 1 = unedited. Sample 0: 2 right unedited, 1 edit missed, 1 unedited lost, 0 right edited. Sample 1: all right,
# 1 unedited and 3 edited.
EXTRACTED = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]], [[[1.0, 0.0], [0.0, 0.0]]]])
TRUE = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]]], [[[1.0, 0.0], [0.0, 0.0]]]])


def test_against_hand_counts() -> None:
    counts = count_pixels(EXTRACTED, TRUE)
    assert counts.unedited_as_unedited.tolist() == [2, 1]
    assert counts.edited_as_unedited.tolist() == [1, 0]
    assert counts.unedited_as_edited.tolist() == [1, 0]
    assert counts.edited_as_edited.tolist() == [0, 3]
    assert iou_of(counts).tolist() == [2 / 4, 1.0]


def test_extracted_and_true_are_not_swapped() -> None:
    """Everything is called unedited, 1 pixel of 4 is."""
    counts = count_pixels(torch.ones(1, 4), torch.tensor([[True, False, False, False]]))
    assert (int(counts.edited_as_unedited), int(counts.unedited_as_edited)) == (3, 0)


def test_two_empty_masks_agree() -> None:
    assert iou_of(count_pixels(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))).tolist() == [1.0]
    assert iou_of(count_pixels(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))).tolist() == [0.0]


def test_batches_joined_give_the_counts_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    extracted, true = torch.rand(2, 7, 1, 5, 5, generator=generator) < 0.4
    joined = join([count_pixels(extracted[:2], true[:2]), count_pixels(extracted[2:], true[2:])])
    whole = count_pixels(extracted, true)
    for entry in fields(PixelCounts):
        assert torch.equal(getattr(joined, entry.name), getattr(whole, entry.name))


@pytest.mark.parametrize(
    ("extracted", "true", "message"),
    [
        (torch.ones(1, 4), torch.ones(1, 5), r"shapes \(1, 4\) \(extracted\) and \(1, 5\) \(true\)"),
        (torch.ones(4), torch.ones(4), "must be"),
        (torch.full((1, 4), 0.5), torch.ones(1, 4), "extracted provenance mask holds 0.5"),
        (torch.ones(1, 4), torch.full((1, 4), math.nan), "true provenance mask holds nan"),
    ],
)
def test_bad_masks_are_user_errors(extracted: torch.Tensor, true: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        count_pixels(extracted, true)
