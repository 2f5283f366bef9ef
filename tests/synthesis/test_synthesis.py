"""Syntheses: inputs, mask and lambda that belong together, and randomness that depends on the key alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ks_2samp, kstest
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from provscale.config import SynthesisConfig
from provscale.errors import UserError
from provscale.randomness import numpy_generator
from provscale.sample import Item, Sample
from provscale.synthesis import CutMix, Edited, Mixing, ResizeMix, Synthesis, build_synthesis, neighbours, random_mask
from provscale.synthesis.cutmix import cutmix_box
from provscale.synthesis.provenance import ProvenanceOptions, make_mask

KEY = (7, 3)  # seed, epoch
MIXINGS = {
    "cutmix": CutMix(),
    "resizemix": ResizeMix(),
    "resizemix, OpenMixup's": ResizeMix(placement="clipped", interpolation="nearest"),
}


def photographs(batch: int, height: int = 20, width: int = 28, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, 3, height, width, generator=generator)
    return Sample.real(inputs, torch.arange(batch) % 5, 100 + torch.arange(batch))


def constant(batch: int, value: float, label: int) -> Sample:
    return Sample.real(torch.full((batch, 3, 24, 32), value), torch.full((batch,), label))


def rows_of(sample: Sample) -> list[list[Tensor]]:
    parts = (sample.inputs, sample.provenance_mask, sample.mixing_weight, sample.targets)
    return [[part[row] for part in parts] for row in range(len(sample))]


def assert_equal_rows(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for row, other in zip(found, expected, strict=True):
        for part, other_part in zip(row, other, strict=True):
            torch.testing.assert_close(part, other_part, rtol=0, atol=1e-6)


# ---- what every mixing promises ----------------------------------------------------------------------------------
@pytest.mark.parametrize("mixing", MIXINGS.values(), ids=MIXINGS)
class TestMixing:
    def test_mask_is_one_exactly_where_pixels_come_from_a(self, mixing: Mixing) -> None:
        """A is 1 everywhere and B is 0, so the mixed image is the mask itself. Shrinking a constant leaves it."""
        mixed = mixing(constant(64, 1.0, 2), constant(64, 0.0, 4), KEY)
        assert mixed.provenance_mask.shape == (64, 1, 24, 32)
        assert mixed.provenance_mask.dtype == torch.float32
        torch.testing.assert_close(mixed.inputs, mixed.provenance_mask.expand(-1, 3, -1, -1), rtol=0, atol=0)
        assert set(mixed.provenance_mask.unique().tolist()) == {0.0, 1.0}

    def test_lambda_is_the_share_of_a(self, mixing: Mixing) -> None:
        mixed = mixing(constant(64, 1.0, 2), constant(64, 0.0, 4), KEY)
        area_of_a = (mixed.inputs[:, 0] == 1.0).sum(dim=(1, 2)) / (24 * 32)
        torch.testing.assert_close(mixed.mixing_weight, area_of_a)
        assert mixed.mixing_weight.dtype == torch.float32

    def test_labels_and_flags(self, mixing: Mixing) -> None:
        sample = photographs(6)
        mixed = mixing(sample, sample[torch.tensor([3, 4, 5, 0, 1, 2])], KEY)
        assert mixed.targets.tolist() == [[0, 3], [1, 4], [2, 0], [3, 0], [4, 1], [0, 2]]
        assert mixed.soft
        assert mixed.guided
        assert mixed.is_synthetic.all()
        assert mixed.index.tolist() == sample.index.tolist()

    def test_neither_source_is_changed(self, mixing: Mixing) -> None:
        sample, partners = photographs(4), photographs(4, seed=1)
        before = [sample.inputs.clone(), partners.inputs.clone(), sample.provenance_mask.clone()]
        mixing(sample, partners, KEY)
        for tensor, kept in zip((sample.inputs, partners.inputs, sample.provenance_mask), before, strict=True):
            assert torch.equal(tensor, kept)
        assert not sample.guided

    def test_result_depends_on_key_and_index_only(self, mixing: Mixing) -> None:
        """The same whatever the order of the batch and whoever else is in it: one call equals one call a sample."""
        sample, partners = photographs(8), photographs(8, seed=1)
        whole = rows_of(mixing(sample, partners, KEY))
        order = torch.tensor([5, 2, 7, 0])
        assert_equal_rows(rows_of(mixing(sample[order], partners[order], KEY)), [whole[i] for i in order.tolist()])
        alone = [rows_of(mixing(sample[i : i + 1], partners[i : i + 1], KEY))[0] for i in range(8)]
        assert_equal_rows(alone, whole)

    @pytest.mark.parametrize("other", [(7, 4), (8, 3)], ids=["epoch", "seed"])
    def test_another_key_gives_another_result(self, mixing: Mixing, other: tuple[int, int]) -> None:
        sample, partners = photographs(8), photographs(8, seed=1)
        masks = mixing(sample, partners, KEY).provenance_mask
        changed = (masks != mixing(sample, partners, other).provenance_mask).flatten(1).any(dim=1)
        assert changed.float().mean() > 0.8

    def test_samples_of_a_batch_differ(self, mixing: Mixing) -> None:
        masks = mixing(photographs(16), photographs(16, seed=1), KEY).provenance_mask
        assert len({mask.numpy().tobytes() for mask in masks}) > 12

    def test_partners_default_to_neighbours(self, mixing: Mixing) -> None:
        sample = photographs(5)
        by_default = mixing(sample, None, KEY)
        named = mixing(sample, sample[torch.tensor([1, 0, 3, 2, 3])], KEY)
        assert_equal_rows(rows_of(by_default), rows_of(named))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtype_of_the_inputs_stays(self, mixing: Mixing, dtype: torch.dtype) -> None:
        sample = photographs(4)
        sample.inputs = sample.inputs.to(dtype)
        assert mixing(sample, None, KEY).inputs.dtype == dtype


def test_neighbours() -> None:
    assert neighbours(6) == [1, 0, 3, 2, 5, 4]
    assert neighbours(5) == [1, 0, 3, 2, 3]
    assert neighbours(1) == [0]
    assert neighbours(0) == []


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


# ---- edited images -----------------------------------------------------------------------------------------------
def edited_item() -> tuple[Item, Tensor]:
    """An edit whose background changed by 80 levels, and where it did not change."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(0, 100, (3, 16, 16), generator=generator, dtype=torch.uint8)
    unedited = torch.zeros(1, 16, 16, dtype=torch.uint8)
    unedited[:, 4:12, 5:11] = 1
    edited = torch.where(unedited.bool(), source, source + 80)
    return Item(tv_tensors.Image(edited), 1, "edit.png", is_synthetic=True, source=tv_tensors.Image(source)), unedited


def test_edited_derives_the_mask_from_the_difference() -> None:
    item, unedited = edited_item()
    mask = Edited().prepare(item).provenance_mask
    assert isinstance(mask, tv_tensors.Mask)
    assert torch.equal(mask, unedited)


def test_edited_smooths_if_asked() -> None:
    item, _ = edited_item()
    assert isinstance(item.source, Tensor)
    expected = make_mask(item.source, item.inputs, ProvenanceOptions(smoothing=2.0))
    plain = make_mask(item.source, item.inputs, ProvenanceOptions())
    assert not torch.equal(plain, expected)
    assert torch.equal(Edited(smoothing=2.0).prepare(item).provenance_mask, expected)


def test_edited_keeps_a_given_mask() -> None:
    item, _ = edited_item()
    item.provenance_mask = given = tv_tensors.Mask(torch.eye(16)[None])
    assert Edited().prepare(item).provenance_mask is given


def test_edited_leaves_real_items_alone() -> None:
    item = Item(tv_tensors.Image(torch.zeros(3, 4, 4, dtype=torch.uint8)), 0, "real.png")
    assert Edited().prepare(item).provenance_mask is None


def test_edited_needs_mask_or_source() -> None:
    item, _ = edited_item()
    item.source = None
    with pytest.raises(UserError, match=r"edit\.png: an edited image needs a mask or its source"):
        Edited().prepare(item)


def test_edited_names_the_file_whose_source_differs_in_size() -> None:
    item, _ = edited_item()
    item.source = tv_tensors.Image(item.source[:, :15])  # type: ignore[index]
    with pytest.raises(UserError, match=r"edit\.png: edited image has shape \(3, 16, 16\).*\(3, 15, 16\)") as caught:
        Edited().prepare(item)
    assert "\n" not in str(caught.value)


def test_edited_uses_the_method_asked_for() -> None:
    item, _ = edited_item()
    assert isinstance(item.source, Tensor)
    expected = make_mask(item.source, item.inputs, ProvenanceOptions(provenance="refined"))
    assert torch.equal(Edited(provenance="refined").prepare(item).provenance_mask, expected)


def test_edited_opens_a_source_only_if_it_needs_it() -> None:
    item, unedited = edited_item()
    source, opened = item.source, []
    assert isinstance(source, Tensor)
    item.source = lambda: opened.append(1) or source  # type: ignore[func-returns-value, return-value]
    assert torch.equal(Edited().prepare(item).provenance_mask, unedited)
    Edited().prepare(item)  # has a mask now
    assert opened == [1]


def test_edited_dilates_every_mask() -> None:
    item, _ = edited_item()
    item.provenance_mask = tv_tensors.Mask(torch.zeros(1, 16, 16))
    item.provenance_mask[0, 8, 8] = 1
    mask = Edited(dilate=0.125).prepare(item).provenance_mask  # a radius of 2 pixels
    assert mask is not None
    disc = [(y, x) for y in range(16) for x in range(16) if abs(y - 8) <= 2 and abs(x - 8) <= 2]
    assert {(y, x) for _, y, x in mask.nonzero().tolist()} <= set(disc)
    assert all(mask[0, y, x] == 1 for y, x in ((6, 8), (10, 8), (8, 6), (8, 10), (7, 7), (9, 9)))
    assert mask.sum() > 9


@pytest.mark.parametrize(("value", "word"), [(0.0, "edited"), (1.0, "unedited")])
def test_a_mask_of_one_value_is_reported_once_and_the_sample_unguided(
    value: float, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesis = Edited()
    for _ in range(2):
        item, _ = edited_item()
        item.provenance_mask = tv_tensors.Mask(torch.full((1, 16, 16), value))
        prepared = synthesis.prepare(item)
        assert not prepared.is_synthetic
        assert prepared.provenance_mask is None
    assert capsys.readouterr().err.count(f"edit.png: its provenance mask says {word} everywhere") == 1


def test_edited_leaves_batches_alone() -> None:
    sample = photographs(4)
    assert Edited()(sample, None, KEY) is sample


# ---- the mask ablation -------------------------------------------------------------------------------------------
def test_random_mask_moves_the_mask() -> None:
    """Same area and same pattern (rolled), another place, the same one for the same key and index."""
    sample = CutMix()(photographs(16), photographs(16, seed=1), KEY)
    moved = random_mask(sample, KEY)
    assert torch.equal(moved.inputs, sample.inputs)
    assert torch.equal(moved.mixing_weight, sample.mixing_weight)
    assert torch.equal(moved.provenance_mask.sum(dim=(1, 2, 3)), sample.provenance_mask.sum(dim=(1, 2, 3)))
    magnitude: Callable[[Tensor], Tensor] = lambda mask: torch.fft.fft2(mask.double()).abs()  # noqa: E731
    # A cyclic shift changes phases only.
    torch.testing.assert_close(magnitude(moved.provenance_mask), magnitude(sample.provenance_mask))
    elsewhere = (moved.provenance_mask != sample.provenance_mask).flatten(1).any(dim=1)
    assert elsewhere.float().mean() > 0.8
    assert torch.equal(random_mask(sample, KEY).provenance_mask, moved.provenance_mask)
    rows = torch.tensor([9, 3])
    assert torch.equal(random_mask(sample[rows], KEY).provenance_mask, moved.provenance_mask[rows])
    assert not torch.equal(random_mask(sample, (7, 4)).provenance_mask, moved.provenance_mask)


def test_random_mask_of_real_samples_stays_ones() -> None:
    sample = photographs(3)
    assert random_mask(sample, KEY).provenance_mask.min() == 1


def test_random_mask_of_whole_persons_ends_on_other_persons() -> None:
    """[P, F, E]: a mask that is constant along frames and elements (BatchMix of persons) is moved over the persons."""
    sample = Sample.real(torch.zeros(16, 4, 6, 5), torch.zeros(16, dtype=torch.long), torch.arange(16))
    sample.provenance_mask = torch.zeros(16, 4, 6, 5)
    sample.provenance_mask[:, 0] = 1
    moved = random_mask(sample, KEY).provenance_mask
    persons = moved.amax(dim=(2, 3))
    assert torch.equal(moved, persons[:, :, None, None].expand_as(moved))
    assert torch.equal(persons.sum(dim=1), torch.ones(16))
    assert (persons[:, 0] == 0).float().mean() > 0.4


# ---- by config ---------------------------------------------------------------------------------------------------
def test_built_by_name() -> None:
    built = build_synthesis(SynthesisConfig(name="resizemix", options={"low": 0.2, "high": 0.3}))
    assert isinstance(built, ResizeMix)
    assert (built.low, built.high) == (0.2, 0.3)
    none = build_synthesis(SynthesisConfig(name="none"))
    sample = photographs(2)
    assert none(sample) is sample
    assert type(none) is Synthesis
    assert not none.pairs
    assert not none.uses_edits


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cutmx", {}, r"synthesis\.name: unknown name 'cutmx', did you mean 'cutmix'\?"),
        ("cutmix", {"alpha": 1.0}, r"synthesis\.options\.alpha: unknown option of cutmix.*one of: beta"),
        ("edited", {"smoothing": -1.0}, r"synthesis\.options\.smoothing: is -1\.0, must be 0 or more"),
        ("cutmix", {"beta": "much"}, r"synthesis\.options\.beta: is 'much', must be a finite number"),
        ("edited", {"dilate": 2.0}, r"synthesis\.options\.dilate: is 2\.0, must be a share"),
        ("edited", {"provenance": "refind"}, r"options\.provenance: unknown name 'refind', did you mean 'refined'"),
        ("edited", {"space": "hsv"}, r"synthesis\.options\.space: is 'hsv', must be"),
        ("edited", {"provenance": "refined", "space": "lab"}, r"space: is 'lab', which only otsu uses"),
        ("edited", {"provenance": "segmented"}, r"synthesis\.options\.weights: is not set, but segmented needs"),
    ],
)
def test_mistakes_in_the_config_are_one_line(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_synthesis(SynthesisConfig(name=name, options=options))
    assert "\n" not in str(caught.value)
