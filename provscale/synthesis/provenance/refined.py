"""Method `refined`: provenance without weights, for what a generator does to the pixels that it keeps.

Otsu's threshold on plain differences calls a third of the background unedited, because old and new background agree in
colour by chance, and the generator's noise, blur and shift hide how well the object agrees. Here

1. a pixel's score is log(1 + colour distance) + (1 - SSIM): the logarithm tells small distances apart, which is where
   kept and new pixels differ, and structural similarity (Wang et al. 2004) tells chance agreement from kept structure;
2. the source is registered to the edit on what looks unedited, for shifts of up to a few pixels (enhanced correlation
   coefficient, Evangelidis and Psarakis 2008: it does not mind brightness and contrast), and the score is taken again;
3. Otsu's threshold splits the scores, and of the unedited pieces those remain that have at least a quarter of the
   largest one's area.

Measured, with what was tried and not kept: docs/provenance.md.
"""

from __future__ import annotations

import cv2
import numpy as np

from provscale.synthesis.provenance.base import PROVENANCE, Pixels, ProvenanceOptions, Values, below_otsu, lab_distance

SIDE = 128  # the shorter side in pixels, at which scales and constants below were measured; larger images are reduced
SIGMA = 1.5  # of SSIM's window, as its authors have it
SMALLEST_PIECE = 0.25  # of the largest piece's area
LARGEST_SHIFT = 0.05  # of the shorter side


@PROVENANCE.register("refined")
def refined(source: Pixels, edited: Pixels, options: ProvenanceOptions) -> Pixels:
    """The method above; equal images give all ones."""
    return unedited_pieces(source, edited)


def unedited_pieces(source: Pixels, edited: Pixels, evidence: Values | None = None) -> Pixels:
    """Mask uint8 [H, W], 1 = unedited.

    Args:
        evidence: float32 [H, W], added to the score: what else speaks against a pixel of `source` being kept.
    """
    height, width = edited.shape[:2]
    ratio = SIDE / min(height, width)
    small = (max(round(width * ratio), 1), max(round(height * ratio), 1)) if ratio < 1 else (width, height)
    before, after = (
        cv2.resize(image, small, interpolation=cv2.INTER_AREA).astype(np.float32) for image in (source, edited)
    )
    against = np.float32(0) if evidence is None else cv2.resize(evidence, small, interpolation=cv2.INTER_AREA)
    first = large_pieces(below_otsu(dissimilarity(before, after) + against))
    mask = large_pieces(below_otsu(dissimilarity(registered(before, after, first), after) + against))
    if small != (width, height):
        mask = (cv2.resize(mask.astype(np.float32), (width, height)) > 0.5).astype(np.uint8)
    return mask


def dissimilarity(before: Values, after: Values) -> Values:
    """Score [H, W], 0 or more, of RGB images [H, W, 3] in [0, 255]."""
    gray = [np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32) for image in (before, after)]
    return np.log1p(lab_distance(before, after)) + (1 - structural_similarity(gray[0], gray[1]))


def structural_similarity(first: Values, second: Values) -> Values:
    """SSIM of each pixel of two gray images [H, W] in [0, 255], in [-1, 1] (Wang et al. 2004, equation 13)."""

    def mean(image: Values) -> Values:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), SIGMA), dtype=np.float32)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_1, mean_2 = mean(first), mean(second)
    variances = mean(first * first) + mean(second * second) - mean_1**2 - mean_2**2
    covariance = mean(first * second) - mean_1 * mean_2
    return ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / ((mean_1**2 + mean_2**2 + c1) * (variances + c2))


def registered(before: Values, after: Values, mask: Pixels) -> Values:
    """`before`, shifted so that it fits `after` inside the mask; unchanged if no small shift does."""
    height, width = mask.shape
    near = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.uint8) for image in (before, after)]
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-3)
    try:
        _, warp = cv2.findTransformECC(
            gray[1], gray[0], np.eye(2, 3, dtype=np.float32), cv2.MOTION_TRANSLATION, stop, near, 3
        )
    except cv2.error:  # nothing to correlate: a flat or an empty region
        return before
    if not np.abs(warp[:, 2]).max() <= LARGEST_SHIFT * min(height, width):
        return before
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(before, warp, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.float32)


def large_pieces(mask: Pixels) -> Pixels:
    """The connected pieces (8 neighbours) of at least `SMALLEST_PIECE` of the largest one's area."""
    count, pieces, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count < 2:
        return mask
    areas = statistics[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # what is edited
    return np.isin(pieces, np.flatnonzero(areas >= max(SMALLEST_PIECE * areas.max(), 1))).astype(np.uint8)
