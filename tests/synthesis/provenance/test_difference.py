"""Method otsu against masks known by construction and against Otsu's criterion computed here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.synthesis.provenance import ProvenanceOptions, make_mask, one_value
from provscale.synthesis.provenance.base import lab_distance


def difference_mask(source: Tensor, edited: Tensor, **options: Any) -> Tensor:
    return make_mask(source, edited, ProvenanceOptions(**options))


def edited_pair(contrast: int, noise: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Source, edit and truth: the background outside a square grows brighter by `contrast`."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(20, 100, (3, 40, 48), generator=generator)
    truth = torch.zeros(1, 40, 48, dtype=torch.bool)
    truth[:, 10:30, 12:26] = True
    edited = torch.where(truth, source, source + contrast)
    edited = edited + torch.randint(-noise, noise + 1, edited.shape, generator=generator)
    return source.to(torch.uint8), edited.clamp(0, 255).to(torch.uint8), truth


def intersection_over_union(mask: Tensor, truth: Tensor) -> float:
    return float((mask.bool() & truth).sum() / (mask.bool() | truth).sum())


def otsu_by_definition(difference: np.ndarray) -> int:
    """The threshold t that maximises the variance between {<= t} and {> t} (Otsu 1979)."""
    scores = np.zeros(256)
    for threshold in range(255):
        low, high = difference[difference <= threshold], difference[difference > threshold]
        if len(low) and len(high):
            scores[threshold] = len(low) * len(high) * (low.mean() - high.mean()) ** 2
    return int(scores.argmax())


def test_exact_on_a_clean_edit() -> None:
    source, edited, truth = edited_pair(contrast=60)
    mask = difference_mask(source, edited)
    assert mask.shape == (1, 40, 48)
    assert mask.dtype == torch.uint8
    assert intersection_over_union(mask, truth) == 1.0


def test_global_noise_of_a_generator_is_not_an_edit() -> None:
    source, edited, truth = edited_pair(contrast=60, noise=5)
    assert intersection_over_union(difference_mask(source, edited), truth) == 1.0


def test_threshold_is_otsus_on_the_largest_channel_difference() -> None:
    generator = torch.Generator().manual_seed(1)
    source, edited = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    difference = (source.int() - edited.int()).abs().numpy().max(axis=0)
    expected = difference <= otsu_by_definition(difference)
    np.testing.assert_array_equal(difference_mask(source, edited)[0].numpy(), expected)


def test_a_change_in_one_channel_is_an_edit() -> None:
    source, _, truth = edited_pair(contrast=0)
    edited = source.clone()
    edited[2][~truth[0]] += 90
    assert intersection_over_union(difference_mask(source, edited), truth) == 1.0


def test_smoothing_removes_lone_pixels_that_agree_by_chance() -> None:
    source, edited, truth = edited_pair(contrast=60)
    edited[:, 2:8:3, 2:46:3] = source[:, 2:8:3, 2:46:3]
    lone = torch.zeros_like(truth)
    lone[:, 2:8:3, 2:46:3] = True
    assert difference_mask(source, edited)[lone].all()
    assert not difference_mask(source, edited, smoothing=1.0)[lone].any()


def test_identical_images_are_unedited_everywhere() -> None:
    source, _, _ = edited_pair(contrast=60)
    assert difference_mask(source, source.clone()).all()
    assert difference_mask(source, source.clone(), smoothing=2.0).all()


def test_float_images_give_the_mask_of_their_uint8_form() -> None:
    source, edited, _ = edited_pair(contrast=60, noise=5)
    as_float = difference_mask(source / 255, edited / 255)
    assert torch.equal(as_float, difference_mask(source, edited))


def test_lab_distance_is_cie76() -> None:
    """Of pure red, green and blue in sRGB: Lab of CIE, D65, as published (Lindbloom's tables, rounded)."""
    pure = np.eye(3, dtype=np.float32)[None] * 255
    lab = np.array([(53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86)])
    expected = np.linalg.norm(lab - np.roll(lab, -1, axis=0), axis=1)
    np.testing.assert_allclose(lab_distance(pure, np.roll(pure, -1, axis=1))[0], expected, atol=0.3)


def test_perceptual_space_sees_the_edit_that_is_small_in_rgb() -> None:
    """Dark gray (40) to dark blue (40, 40, 72) is a perceptual distance of 23; to (72, 72, 72) of 15: in RGB both are
    32. The object's light changes by 32 everywhere, so only a perceptual difference parts it from the background."""
    truth = torch.zeros(1, 40, 48, dtype=torch.bool)
    truth[:, 10:30, 12:26] = True
    source = torch.full((3, 40, 48), 40, dtype=torch.uint8)
    edited = source.clone()
    edited[2] += 32
    edited[:, truth[0]] = 72
    assert one_value(difference_mask(source, edited))
    assert torch.equal(difference_mask(source, edited, space="lab").bool(), truth)


def test_mistakes_are_named() -> None:
    source, edited, _ = edited_pair(contrast=60)
    with pytest.raises(UserError, match=r"\(3, 40, 47\).*\(3, 40, 48\).*source_size to resize"):
        difference_mask(source, edited[..., :47])


def test_a_source_of_another_size_is_resized_if_asked() -> None:
    """A source twice as large whose 2 x 2 blocks are constant is, averaged, the source itself."""
    source, edited, truth = edited_pair(contrast=60)
    large = source.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    mask = difference_mask(large, edited, source_size="resize")
    assert mask.shape == truth.shape
    assert intersection_over_union(mask, truth) > 0.8  # antialiasing blurs the edges between random pixels
