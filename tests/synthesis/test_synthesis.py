"""Syntheses: inputs, mask and lambda that belong together, and randomness that depends on the key alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from provscale.config import SynthesisConfig
from provscale.errors import UserError
from provscale.sample import Sample
from provscale.synthesis import CutMix, Mixing, ResizeMix, Synthesis, build_synthesis, neighbours, random_mask

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
