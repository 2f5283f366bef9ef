"""BatchMix: every element of the mixed clip comes from where the mask says, and lambda counts real elements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from provscale.errors import UserError
from provscale.guidance.loss import guidance_penalty
from provscale.sample import Sample
from provscale.synthesis.batchmix import FROM_A, FROM_B, NOBODY, BatchMix, mix_frames, mix_persons

B, P, F, E = 64, 5, 8, 6
VARIANTS = ("persons", "frames", "both")


def batch(offset: int) -> Sample:
    """Clips whose persons are tagged: 100 x clip + slot + 1 + offset in all elements; clip i has i % P + 1 persons.

    Some elements are missing.
    """
    clip, slot = torch.arange(B).view(-1, 1, 1, 1), torch.arange(P).view(1, -1, 1, 1)
    valid = (torch.rand(B, P, F, E, generator=torch.Generator().manual_seed(offset)) > 0.2) & (slot <= clip % P)
    # One element is always there, so that a slot that should hold a person does.
    valid[..., 0] = slot[..., 0] <= clip[..., 0] % P
    inputs = (100.0 * clip + slot + 1 + offset).expand(B, P, F, E) * valid
    sample = Sample.real(inputs, torch.arange(B) % 3)
    sample.valid_mask = valid.float()
    return sample


@pytest.mark.parametrize("variant", VARIANTS)
def test_elements_come_from_where_the_mask_says(variant: str) -> None:
    sample, partners = batch(0), batch(10_000)
    partners = partners[torch.randperm(B, generator=torch.Generator().manual_seed(0))]
    found = BatchMix(variant)(sample, partners, (1, 2))  # type: ignore[arg-type]
    assert found.valid_mask is not None
    there = found.valid_mask.bool()
    assert set(found.provenance_mask.unique().tolist()) == {0.0, 1.0}
    assert found.provenance_mask.shape == found.inputs.shape == (B, P, F, E)
    assert (found.inputs[~there] == 0).all()
    from_a = found.inputs < 10_000
    assert torch.equal(from_a[there], found.provenance_mask.bool()[there])
    # A's elements stay in their places with their values.
    assert torch.equal(found.inputs[there & from_a], sample.inputs[there & from_a])
    # B's belong to the row's partner; people may sit in other slots, but not in other frames or elements.
    clip = partners.inputs.flatten(1).amax(dim=1).sub(10_000).div(100, rounding_mode="floor")
    theirs = there & ~from_a
    assert torch.equal(((found.inputs - 10_000) // 100)[theirs], clip.view(-1, 1, 1, 1).expand(B, P, F, E)[theirs])
    for row in range(B):
        for slot in range(P):
            for tag in found.inputs[row, slot][found.inputs[row, slot] > 10_000].unique().tolist():
                original = partners.inputs[row, int(tag) % 100 - 1]
                moved = found.inputs[row, slot]
                assert torch.equal(moved[moved == tag], original[moved == tag])
    assert torch.equal(found.targets, torch.stack([sample.targets[:, 0], partners.targets[:, 0]], dim=1))
    assert bool(found.is_synthetic.all())
    assert found.guided


def test_people_who_are_not_chosen_are_gone() -> None:
    """A slot of A that no one of B took is either whole or empty, and both happen."""
    sample = batch(0)
    found = BatchMix("persons")(sample, batch(10_000), (0,))
    mine = (sample.inputs[..., 0] > 0).all(dim=2) & (found.inputs < 10_000).flatten(2).all(dim=2)
    whole = (found.inputs == sample.inputs).flatten(2).all(dim=2)
    gone = (found.inputs == 0).flatten(2).all(dim=2)
    assert (whole ^ gone)[mine].all()
    assert whole[mine].any()
    assert gone[mine].any()


def test_everybody_of_both_clips_is_in_the_overlay() -> None:
    """A in the first P slots, B in the others, element by element; M says so, and nobody is dropped."""
    sample, partners, mix = batch(0), batch(10_000), BatchMix()
    found = mix(sample, partners, (1, 2))
    assert found.inputs.shape == found.provenance_mask.shape == (B, 2 * P, F, E)
    assert torch.equal(found.inputs, torch.cat([sample.inputs, partners.inputs], dim=1))
    assert found.valid_mask is not None
    there = found.valid_mask.bool()
    assert torch.equal(there, torch.cat([sample.valid_mask, partners.valid_mask], dim=1).bool())  # type: ignore[list-item]
    assert (found.provenance_mask[:, :P] == 1).all()
    assert (found.provenance_mask[:, P:] == 0).all()
    ours, theirs = there[:, :P].flatten(1).sum(1), there[:, P:].flatten(1).sum(1)
    torch.testing.assert_close(found.mixing_weight, ours / (ours + theirs))
    people = 2 * sum(clip % P + 1 for clip in range(B))
    assert (mix.persons, mix.dropped, mix.remark()) == (people, 0, "")
    one, two = torch.ones_like(found.inputs), torch.full_like(found.inputs, 2.0)
    assert float(guidance_penalty([one, two], found)) == pytest.approx(float(theirs.sum() + 4 * ours.sum()) / B)


@pytest.mark.parametrize("slots", [1, 4, 2 * P, 99])
def test_the_least_confident_have_no_slot(slots: int) -> None:
    """Who is kept: a sort of each person's summed confidences, here; who they are, and whose, stays with them."""
    sample, partners, mix = batch(0), batch(10_000), BatchMix(slots=slots)
    found = mix(sample, partners, (1, 2))
    both = torch.cat([sample.inputs, partners.inputs], dim=1)
    kept = min(slots, 2 * P)
    assert found.inputs.shape == (B, kept, F, E)
    dropped = 0
    for row in range(B):
        confidence = both[row, :, :, 2::3].sum(dim=(1, 2))
        order = sorted(range(2 * P), key=lambda person: -float(confidence[person]))
        people = [person for person in order if both[row, person].any()]
        dropped += max(len(people) - kept, 0)
        expected = {float(both[row, person].max()) for person in people[:kept]}
        assert {float(person.max()) for person in found.inputs[row] if person.any()} == expected
    from_b = found.inputs >= 10_000
    there = found.valid_mask.bool()  # type: ignore[union-attr]
    assert torch.equal(from_b[there], found.provenance_mask[there] == 0)
    assert mix.dropped == dropped
    assert (str(dropped) in mix.remark()) == (dropped > 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixing_weight_is_the_share_of_real_elements(variant: str) -> None:
    found = BatchMix(variant)(batch(0), batch(10_000), (0,))  # type: ignore[arg-type]
    ours, theirs = ((found.inputs > 0) & (found.inputs < 10_000)), found.inputs >= 10_000
    share = ours.flatten(1).sum(1) / (ours | theirs).flatten(1).sum(1)
    torch.testing.assert_close(found.mixing_weight, share)
    assert found.mixing_weight.unique().numel() > B // 4, "lambda varies"


def test_what_each_variant_mixes() -> None:
    """persons: M constant over frames and elements; frames: over persons and elements; both: neither alone."""
    masks = {variant: BatchMix(variant)(batch(0), batch(10_000), (0,)).provenance_mask for variant in VARIANTS}  # type: ignore[arg-type]
    assert (masks["persons"] == masks["persons"][:, :, :1, :1]).all()
    assert (masks["frames"] == masks["frames"][:, :1, :, :1]).all()
    runs = (masks["frames"][:, 0, :, 0].diff(dim=1, prepend=torch.ones(B, 1), append=torch.ones(B, 1)) != 0).sum(1)
    assert (runs == 2).all(), "one run of frames"
    assert (masks["both"] == masks["both"][..., :1]).all()
    assert not (masks["both"] == masks["both"][:, :, :1]).all()
    assert not (masks["both"] == masks["both"][:, :1]).all()


def test_draws_depend_on_key_and_index_only() -> None:
    """A sample is mixed alike in any batch with the same partner: what makes runs independent of the world size."""
    sample, partners, mix = batch(0), batch(10_000), BatchMix("persons")
    whole = mix(sample, partners, (3, 4))
    part = mix(sample[torch.tensor([9, 5])], partners[torch.tensor([9, 5])], (3, 4))
    assert torch.equal(part.inputs, whole.inputs[[9, 5]])
    assert torch.equal(part.provenance_mask, whole.provenance_mask[[9, 5]])
    assert not torch.equal(mix(sample, partners, (3, 5)).inputs, whole.inputs)


def test_people_of_both_clips_meet() -> None:
    """Counts of both are uniform over 1 to all where there is room: 1/3 each for three and two people, 5 slots."""
    a, b = np.array([1, 1, 1, 0, 0], dtype=bool), np.array([1, 0, 0, 0, 1], dtype=bool)
    counts = np.zeros((4, 3))
    for seed in range(3000):
        source, slot = mix_persons(np.random.default_rng(seed), a, b)
        assert (np.flatnonzero(source == FROM_A) < 3).all()
        taken = slot[source == FROM_B]
        assert len(set(taken)) == len(taken)
        assert set(taken.tolist()) <= {0, 4}
        counts[(source == FROM_A).sum(), (source == FROM_B).sum()] += 1
    # Six equally likely outcomes; 5 standard deviations of a binomial are 5 sqrt(3000 x 1/6 x 5/6) = 102.
    assert np.abs(counts[1:, 1:] - 500).max() < 102
    assert counts[0].sum() == counts[:, 0].sum() == 0


def test_full_clips_share_the_slots() -> None:
    full = np.ones(4, dtype=bool)
    for seed in range(50):
        source, _ = mix_persons(np.random.default_rng(seed), full, full)
        assert (source == FROM_A).sum() >= 1
        assert (source == FROM_B).sum() >= 1
    source, _ = mix_persons(np.random.default_rng(0), full & False, full & False)
    assert (source == NOBODY).all()


def test_run_of_frames_is_inside_the_clip() -> None:
    runs = [mix_frames(np.random.default_rng(seed), 8, 1.0) for seed in range(300)]
    assert {end - first for first, end in runs} == set(range(1, 9))
    assert all(0 <= first < end <= 8 for first, end in runs)


def test_clip_in_which_nobody_is_left_stays_as_it_was() -> None:
    """A is seen in the middle only, B nowhere: where the run covers A's frames, nothing would be left."""
    sample, partners = batch(0), batch(10_000)
    seen = torch.zeros(F)
    seen[3] = 1
    sample = replace(sample, inputs=sample.inputs * seen.view(-1, 1), valid_mask=sample.valid_mask * seen.view(-1, 1))  # type: ignore[operator]
    partners = replace(partners, inputs=0 * partners.inputs, valid_mask=0 * partners.valid_mask)  # type: ignore[operator]
    found = BatchMix("frames")(sample, partners, (0,))
    assert torch.equal(found.inputs, sample.inputs)
    assert (found.mixing_weight == 1).all()


def test_guidance_acts_on_real_elements_only() -> None:
    """L_PG of Eq. 1 with unit gradients: elements from B count for f_A, those from A for f_B, padding for neither."""
    found = BatchMix("persons")(batch(0), batch(10_000), (0,))
    one, two = torch.ones(B, P, F, E), torch.full((B, P, F, E), 2.0)
    ours, theirs = ((found.inputs > 0) & (found.inputs < 10_000)).sum(), (found.inputs >= 10_000).sum()
    assert float(guidance_penalty([one, two], found)) == pytest.approx(float(theirs + 4 * ours) / B)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="variant: is 'people', must be one of: overlay, persons, frames, both"):
        BatchMix("people")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="beta: is 0"):
        BatchMix(beta=0)
    with pytest.raises(UserError, match="slots: is 0"):
        BatchMix(slots=0)
    with pytest.raises(UserError, match="slots: is 3 with variant frames"):
        BatchMix("frames", slots=3)
    with pytest.raises(UserError, match="batchmix mixes skeletons"):
        BatchMix()(Sample.real(torch.zeros(2, 10), torch.tensor([0, 1])))
