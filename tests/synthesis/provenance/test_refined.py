"""Method refined against masks known by construction, and SSIM against its formula computed pixel by pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from provscale.synthesis.provenance import ProvenanceOptions, make_mask
from provscale.synthesis.provenance.base import Pixels
from provscale.synthesis.provenance.refined import SIGMA, large_pieces, registered, structural_similarity


def smooth_texture(generator: np.random.Generator, side: int, low: int, high: int) -> Pixels:
    """RGB noise of a scale of some pixels, as photographs have it, in [low, high]."""
    noise = cv2.GaussianBlur(generator.standard_normal((side, side, 3)), (0, 0), side / 50)
    span = (noise - noise.min()) / (noise.max() - noise.min())
    return (low + span * (high - low)).astype(np.uint8)


def exchanged_background(side: int, seed: int = 0) -> tuple[Pixels, Pixels, Pixels]:
    """Source, edit and truth: an ellipse on one texture and then on another of the same colours; the edit is shifted
    by a pixel, tinted, blurred and noisy all over."""
    generator = np.random.default_rng(seed)
    truth = np.zeros((side, side), np.uint8)
    cv2.ellipse(truth, (side // 2, side // 2), (side // 3, side // 4), 30, 0, 360, 1, -1)
    thing = smooth_texture(generator, side, 20, 235)
    before, after = (np.where(truth[..., None], thing, smooth_texture(generator, side, 20, 235)) for _ in range(2))
    after = cv2.GaussianBlur(np.roll(after, (1, 1), (0, 1)).astype(np.float32), (0, 0), 0.5)
    after = after * (1.0, 0.95, 1.05) + generator.normal(0, 3, after.shape)
    return before, after.clip(0, 255).astype(np.uint8), np.roll(truth, (1, 1), (0, 1))


def mask_of(source: Pixels, edited: Pixels, method: str) -> Pixels:
    images = (torch.from_numpy(image.copy()).permute(2, 0, 1) for image in (source, edited))
    return make_mask(*images, ProvenanceOptions(provenance=method))[0].numpy()


def overlap(mask: Pixels, truth: Pixels) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize("side", [96, 128, 300])
def test_better_than_otsu_where_colours_agree_by_chance(side: int) -> None:
    source, edited, truth = exchanged_background(side)
    refined = mask_of(source, edited, "refined")
    assert refined.shape == (side, side)
    assert refined.dtype == np.uint8
    assert overlap(refined, truth) > 0.8
    assert overlap(refined, truth) > overlap(mask_of(source, edited, "otsu"), truth) + 0.2


def test_the_source_is_registered_on_what_was_kept() -> None:
    """A whole pixel down and right, in other light: registered, the source is the edit without the light."""
    source, _, truth = exchanged_background(128)
    shifted = np.roll(source, (1, 1), (0, 1)).astype(np.float32)
    moved = registered(source.astype(np.float32), shifted * 0.8 + 20, truth)
    off = np.abs(source - shifted)[truth > 0].mean()
    assert np.abs(moved - shifted)[truth > 0].mean() < off / 10


def test_nothing_to_register_on_changes_nothing() -> None:
    flat = np.full((32, 32, 3), 90, np.float32)
    assert np.array_equal(registered(flat, flat, np.ones((32, 32), np.uint8)), flat)
    assert np.array_equal(registered(flat, flat, np.zeros((32, 32), np.uint8)), flat)


def test_structural_similarity_is_the_published_formula() -> None:
    """Equation 13 of Wang et al. with Gaussian weights, at one pixel, by plain sums."""
    generator = np.random.default_rng(2)
    first, second = generator.uniform(0, 255, (2, 21, 21)).astype(np.float32)
    y, x = np.mgrid[-10:11, -10:11]
    reach = np.abs(np.arange(-10, 11)) <= len(cv2.getGaussianKernel(int(SIGMA * 8) + 1 | 1, SIGMA)) // 2
    weight = np.exp(-(x**2 + y**2) / (2 * SIGMA**2)) * np.outer(reach, reach)
    weight /= weight.sum()
    mean = [(weight * image).sum() for image in (first, second)]
    variance = [(weight * (image - average) ** 2).sum() for image, average in zip((first, second), mean, strict=True)]
    covariance = (weight * (first - mean[0]) * (second - mean[1])).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mean[0] * mean[1] + c1) * (2 * covariance + c2)
    expected /= (mean[0] ** 2 + mean[1] ** 2 + c1) * (variance[0] + variance[1] + c2)
    assert structural_similarity(first, second)[10, 10] == pytest.approx(expected, abs=2e-3)


def test_small_pieces_go_and_large_ones_stay() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[1:9, 1:9] = 1  # 64 pixels
    mask[12:16, 12:16] = 1  # 16: a quarter
    mask[1, 15] = 1
    kept = large_pieces(mask)
    assert kept[1:9, 1:9].all()
    assert kept[12:16, 12:16].all()
    assert kept.sum() == 80
    assert not large_pieces(np.zeros((4, 4), np.uint8)).any()


def test_identical_images_are_unedited_everywhere() -> None:
    source, _, _ = exchanged_background(64)
    assert mask_of(source, source, "refined").all()
