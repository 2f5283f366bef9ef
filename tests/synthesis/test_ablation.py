"""Masks of the ablations: what is kept, what is changed, and that both reach training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from tiny_runs import rows, train

from provscale.errors import UserError
from provscale.guidance.options import GuidanceOptions
from provscale.sample import Sample
from provscale.synthesis import CutMix
from provscale.synthesis.ablation import ablated, complement_mask, dilated_mask, independent_mask

KEY = (7, 3)


def mixed(batch: int = 32, side: int = 32) -> Sample:
    generator = torch.Generator().manual_seed(0)
    sample = Sample.real(torch.randn(batch, 3, side, side, generator=generator), torch.arange(batch) % 5)
    return CutMix()(sample, None, KEY)


def test_independent_mask_keeps_every_value_as_often() -> None:
    sample = mixed()
    sample.provenance_mask[:, :, :4] = 0.5  # as PuzzleMix has
    found = independent_mask(sample, KEY).provenance_mask
    for mask, own in zip(found, sample.provenance_mask, strict=True):
        assert torch.equal(mask.flatten().sort().values, own.flatten().sort().values)


def test_independent_mask_agrees_as_often_as_chance() -> None:
    """s^2 + (1 - s)^2 for a share s, over 400 masks; rolled masks are not needed for it."""
    sample = mixed(400)
    found = independent_mask(sample, KEY).provenance_mask
    share = sample.provenance_mask.mean(dim=(1, 2, 3))
    agreement = (found == sample.provenance_mask).float().mean(dim=(1, 2, 3))
    chance = share**2 + (1 - share) ** 2
    assert abs(float((agreement - chance).mean())) < 4 * float((agreement - chance).std()) / 20
    middling = (share > 0.3) & (share < 0.7)
    assert agreement[middling].mean() < 0.7


def test_independent_mask_depends_on_key_and_index_only() -> None:
    sample = mixed()
    whole = independent_mask(sample, KEY).provenance_mask
    rows = torch.tensor([5, 2, 30])
    assert torch.equal(independent_mask(sample[rows], KEY).provenance_mask, whole[rows])
    assert not torch.equal(independent_mask(sample, (7, 4)).provenance_mask, whole)


def test_complementary_mask_of_synthetic_samples_only() -> None:
    sample = mixed()
    sample.is_synthetic[::2] = False
    found = complement_mask(sample, KEY).provenance_mask
    assert torch.equal(found[1::2], 1 - sample.provenance_mask[1::2])
    assert torch.equal(found[::2], sample.provenance_mask[::2])


def test_independent_mask_of_a_skeleton() -> None:
    sample = mixed(4)
    sample.provenance_mask = (torch.rand(4, 2, 8, 9) > 0.3).float()
    found = independent_mask(sample, KEY).provenance_mask
    assert found.shape == (4, 2, 8, 9)
    assert torch.equal(found.sum(dim=(1, 2, 3)), sample.provenance_mask.sum(dim=(1, 2, 3)))


@pytest.mark.parametrize("percent", [10.0, 30.0, -10.0, -30.0])
def test_dilation_changes_the_area_by_the_nearest_pixels(percent: float) -> None:
    """Against SciPy's distances: no pixel that stays is nearer than one that changes."""
    sample = mixed()
    sample.is_synthetic[3] = False
    found = dilated_mask(sample, percent).provenance_mask
    assert torch.equal(found[3], sample.provenance_mask[3])
    for row in [number for number in range(32) if number != 3]:
        before, after = (tensor[row, 0].numpy() == 1 for tensor in (sample.provenance_mask, found))
        region = ~before if percent > 0 else before
        if not region.any() or region.all():
            continue
        assert after.sum() - before.sum() == np.sign(percent) * min(
            round(abs(percent) / 100 * before.sum()), int(region.sum())
        )
        changed = before != after
        assert not (changed & ~region).any()
        distance = distance_transform_edt(region)
        if changed.any() and (region & ~changed).any():
            assert distance[changed].max() <= distance[region & ~changed].min() + 1e-5


def test_ablated_does_what_the_options_say() -> None:
    sample = mixed()
    assert ablated(sample, "provenance", 0.0, KEY) is sample
    assert ablated(sample, "none", 0.0, KEY) is sample, "the loss leaves the mask out"
    assert torch.equal(
        ablated(sample, "independent", 30.0, KEY).provenance_mask,
        independent_mask(dilated_mask(sample, 30.0), KEY).provenance_mask,
    )
    real = Sample.real(sample.inputs, sample.targets[:, 0])
    assert ablated(real, "independent", 30.0, KEY) is real
    for value in (-100.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"guidance\.dilation: is .*above -100"):
            GuidanceOptions(dilation=value)


def test_ablations_reach_training(tmp_path: Path) -> None:
    """One step of each arm: the same L_cls, another L_PG."""
    losses = {}
    for name, changes in {
        "provenance": {}, "random": {"guidance__mask": "random"}, "independent": {"guidance__mask": "independent"},
        "dilated": {"guidance__dilation": 30}, "eroded": {"guidance__dilation": -30},
    }.items():  # fmt: skip
        folder = train(tmp_path, name, train__max_steps=1, **changes)
        row = next(row for row in rows(folder) if row["kind"] == "train")
        losses[name] = row["loss_cls"], row["loss_guidance"]
    assert len({value for value, _ in losses.values()}) == 1
    assert len({value for _, value in losses.values()}) == 5
