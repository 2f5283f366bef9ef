"""CutMix and ResizeMix: where boxes lie, how they are distributed, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ks_2samp, kstest
from test_synthesis import KEY, constant, photographs
from torch import Tensor
from torchvision.transforms import v2

from provscale.config import SynthesisConfig
from provscale.errors import UserError
from provscale.randomness import numpy_generator
from provscale.synthesis import CutMix, ResizeMix, build_synthesis
from provscale.synthesis.cutmix import cutmix_box


# ---- CutMix ------------------------------------------------------------------------------------------------------
def box_of(mask: Tensor) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 (exclusive) of the zeros of a mask [H, W], which must fill that box."""
    rows, columns = (mask == 0).any(dim=1).nonzero(), (mask == 0).any(dim=0).nonzero()
    y0, y1, x0, x1 = int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
    assert (mask[y0:y1, x0:x1] == 0).all()
    return x0, y0, x1, y1


def test_cutmix_pastes_the_partner_at_its_own_place() -> None:
    sample, partners = photographs(8), photographs(8, seed=1)
    mixed = CutMix()(sample, partners, KEY)
    for row in range(8):
        mask = mixed.provenance_mask[row, 0]
        if mask.min() == 1:
            continue
        x0, y0, x1, y1 = box_of(mask)
        expected = sample.inputs[row].clone()
        expected[:, y0:y1, x0:x1] = partners.inputs[row, :, y0:y1, x0:x1]
        assert torch.equal(mixed.inputs[row], expected)


def torchvision_boxes(count: int, height: int, width: int, beta: float) -> np.ndarray:
    """Boxes of torchvision's own CutMix, x0, y0, x1, y1."""
    torch.manual_seed(0)
    peer = v2.CutMix(num_classes=2, alpha=beta)
    image = torch.zeros(2, 3, height, width)
    return np.array([peer.make_params([image])["box"] for _ in range(count)])


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_cutmix_boxes_are_distributed_as_torchvisions(beta: float) -> None:
    """Kolmogorov-Smirnov on area, width and left edge of 3000 boxes each; 0.001 is the usual level of alarm."""
    height, width = 60, 90
    found = np.array([cutmix_box(numpy_generator("box", i), height, width, beta) for i in range(3000)])
    peers = torchvision_boxes(3000, height, width, beta)
    for measure in (
        lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),
        lambda b: b[:, 2] - b[:, 0],
        lambda b: b[:, 0],
        lambda b: b[:, 3],
    ):
        assert ks_2samp(measure(found), measure(peers)).pvalue > 1e-3


def test_cutmix_boxes_are_clipped_and_keep_the_images_shape() -> None:
    """Clipped boxes touch an edge; an unclipped one has sides (W, H) * sqrt(1 - lambda), even because of W // 2."""
    height, width = 60, 90
    boxes = np.array([cutmix_box(numpy_generator("box", i), height, width, 1.0) for i in range(2000)])
    x0, y0, x1, y1 = boxes.T
    assert x0.min() == 0
    assert y0.min() == 0
    assert x1.max() == width
    assert y1.max() == height
    assert (x0 <= x1).all()
    assert (y0 <= y1).all()
    inside = (x0 > 0) & (y0 > 0) & (x1 < width) & (y1 < height)
    assert inside.sum() > 200
    # Each side is rounded down to even pixels: at most 2 pixels below the exact one.
    ratio_w, ratio_h = (x1 - x0)[inside] / width, (y1 - y0)[inside] / height
    assert np.abs(ratio_w - ratio_h).max() <= 2 / height


def test_cutmix_lambda_is_uniform_before_clipping() -> None:
    """Beta(1, 1) is uniform, and a box whose centre is the image's is never clipped."""

    class Middle:
        def __init__(self, index: int) -> None:
            self.generator = numpy_generator("middle", index)

        def beta(self, a: float, b: float) -> float:
            return float(self.generator.beta(a, b))

        def integers(self, high: int) -> int:
            return high // 2

    boxes = np.array([cutmix_box(Middle(i), 1000, 1000, 1.0) for i in range(2000)])  # type: ignore[arg-type]
    shares = 1 - (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1000**2
    assert kstest(shares, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_cutmix_refuses_a_beta_that_is_no_distribution(beta: float) -> None:
    with pytest.raises(UserError, match=r"synthesis\.options\.beta: is .*above 0"):
        CutMix(beta=beta)


# ---- ResizeMix ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("height", "width", "low", "high"),
    [(20, 28, 0.1, 0.8), (64, 64, 0.1, 0.8), (224, 160, 0.3, 0.6), (17, 33, 0.05, 0.2), (24, 24, 1.0, 1.0)],
)
def test_resizemix_pastes_the_whole_partner_shrunk(height: int, width: int, low: float, high: float) -> None:
    """Against torch.nn.functional.interpolate, bilinear with antialiasing, of each partner alone (in float64: its own
    float32 filter positions are off by up to 3e-5 at 224 pixels)."""
    sample, partners = photographs(6, height, width), photographs(6, height, width, seed=1)
    mixed = ResizeMix(low, high)(sample, partners, KEY)
    for row in range(6):
        x0, y0, x1, y1 = box_of(mixed.provenance_mask[row, 0])
        expected = sample.inputs[row].clone()
        expected[:, y0:y1, x0:x1] = F.interpolate(
            partners.inputs[row : row + 1].double(), (y1 - y0, x1 - x0), mode="bilinear", antialias=True
        )[0].float()
        torch.testing.assert_close(mixed.inputs[row], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(20, 28), (224, 160), (40, 33)])
def test_resizemix_clipped_squashes_the_partner_into_what_is_left(height: int, width: int) -> None:
    """Against torch.nn.functional.interpolate, nearest, pixel for pixel."""
    sample, partners = photographs(12, height, width), photographs(12, height, width, seed=1)
    mixed = ResizeMix(placement="clipped", interpolation="nearest")(sample, partners, KEY)
    for row in range(12):
        x0, y0, x1, y1 = box_of(mixed.provenance_mask[row, 0])
        expected = sample.inputs[row].clone()
        expected[:, y0:y1, x0:x1] = F.interpolate(partners.inputs[row : row + 1], (y1 - y0, x1 - x0))[0]
        assert torch.equal(mixed.inputs[row], expected)


def test_resizemix_clipped_boxes_surround_a_uniform_centre() -> None:
    """Boxes that touch no edge have sides int(scale * side), rounded down to even; the others are shorter."""
    height, width = 500, 1000
    mixing = ResizeMix(placement="clipped")
    boxes = np.array([mixing.box(numpy_generator("box", i), height, width) for i in range(2000)])
    x0, y0, x1, y1 = boxes.T
    assert (boxes >= 0).all()
    assert x1.max() == width
    assert y1.max() == height
    inside = (x0 > 0) & (y0 > 0) & (x1 < width) & (y1 < height)
    assert 0.2 < inside.mean() < 0.6
    assert np.abs((x1 - x0)[inside] / width - (y1 - y0)[inside] / height).max() <= 2 / height
    small = (x1 - x0 < 0.2 * width) & (x0 > 0) & (x1 < width)
    centres = (x0 + x1)[small] / 2
    assert kstest(centres, "uniform", (centres.min(), np.ptp(centres))).pvalue > 1e-3


@pytest.mark.parametrize("options", [{"placement": "centre"}, {"interpolation": "cubic"}])
def test_resizemix_refuses_unknown_variants(options: dict[str, str]) -> None:
    (name, value) = next(iter(options.items()))
    with pytest.raises(UserError, match=rf"synthesis\.options\.{name}: is '{value}'"):
        build_synthesis(SynthesisConfig("resizemix", options=options))


def test_resizemix_scale_is_uniform_and_the_box_inside() -> None:
    """Sides are int(scale * side) with scale ~ U(0.1, 0.8), places uniform over those inside the image."""
    height, width = 500, 1000
    mixing = ResizeMix()
    boxes = np.array([mixing.box(numpy_generator("box", i), height, width) for i in range(2000)])
    x0, y0, x1, y1 = boxes.T
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x1 <= width).all()
    assert (y1 <= height).all()
    scale = (x1 - x0) / width
    assert np.abs((y1 - y0) / height - scale).max() <= 1 / height
    assert kstest(scale, "uniform", (0.1, 0.7)).pvalue > 1e-3
    assert kstest(x0 / (width - (x1 - x0)), "uniform").pvalue > 1e-3
    assert kstest(y0 / (height - (y1 - y0)), "uniform").pvalue > 1e-3


def test_resizemix_pastes_at_least_a_pixel() -> None:
    mixed = ResizeMix(0.01, 0.02)(constant(4, 1.0, 0), constant(4, 0.0, 1), KEY)
    torch.testing.assert_close(mixed.mixing_weight, torch.full((4,), 1 - 1 / (24 * 32)))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.6, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_resizemix_refuses_scales_outside_the_image(low: float, high: float) -> None:
    with pytest.raises(UserError, match=r"synthesis\.options: low .* high .* must satisfy"):
        ResizeMix(low, high)
