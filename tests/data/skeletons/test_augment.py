"""Joint augmentation: each option alone does what it says, on keypoints that are there, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from provscale.data.skeletons.augment import Augmentation
from provscale.errors import UserError
from provscale.sample import Item

P, T, V = 2, 12, 17


def clip() -> Item:
    """Points in the frame, a fifth of the keypoints missing; frame t has confidence (t + 1) / T."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(P, T, V, 3, generator=generator) - 0.5
    points[..., 2] = (torch.arange(T) + 1.0).view(1, T, 1) / T
    there = torch.rand(P, T, V, 1, generator=generator) > 0.2
    return Item((points * there).flatten(2), 0, "clip", valid_mask=there.expand(P, T, V, 3).flatten(2).float())


def changed(seed: int, **options: float) -> tuple[Item, Item]:
    torch.manual_seed(seed)
    return clip(), Augmentation(**options)(clip())


def places(item: Item) -> torch.Tensor:
    points = item.inputs.unflatten(2, (V, 3))
    return points[points[..., 2] > 0][:, :2]


def test_nothing_changes_without_options() -> None:
    before, after = changed(0)
    assert torch.equal(after.inputs, before.inputs)
    assert torch.equal(after.valid_mask, before.valid_mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"scale": 0.2}, {"shift": 0.2}, {"rotation": 5.0}, {"drop": 0.5}, {"crop": 0.5}])
def test_missing_keypoints_stay_missing_and_the_mask_says_so(options: dict[str, float]) -> None:
    for seed in range(5):
        _, after = changed(seed, **options)
        there = after.inputs.unflatten(2, (V, 3))[..., 2] > 0
        assert torch.equal(after.valid_mask.unflatten(2, (V, 3)).bool(), there[..., None].expand(*there.shape, 3))  # type: ignore[union-attr]
        assert (after.inputs.unflatten(2, (V, 3))[~there] == 0).all()


def test_scale_keeps_the_centre_and_its_range() -> None:
    factors = []
    for seed in range(200):
        before, after = changed(seed, scale=0.2)
        ratio = places(after) / places(before)
        torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4, atol=1e-4)
        factors.append(float(ratio[0, 0]))
    assert 0.8 <= min(factors) < 0.83
    assert 1.17 < max(factors) <= 1.2


def test_shift_is_a_share_of_the_frame() -> None:
    """The frame is 2 wide, so 0.2 of it are 0.4."""
    moves = []
    for seed in range(200):
        before, after = changed(seed, shift=0.2)
        move = places(after) - places(before)
        torch.testing.assert_close(move, move[:1].expand_as(move), rtol=1e-4, atol=1e-5)
        moves.append(move[0])
    found = torch.stack(moves)
    assert 0.38 < found.abs().max() <= 0.4
    assert (found.abs().amax(dim=0) > 0.38).all()


def test_rotation_keeps_lengths_and_its_range() -> None:
    angles = []
    for seed in range(200):
        before, after = changed(seed, rotation=5.0)
        torch.testing.assert_close(places(after).norm(dim=1), places(before).norm(dim=1))
        (x, y), (u, v) = places(before)[0].tolist(), places(after)[0].tolist()
        angles.append(math.degrees(math.atan2(x * v - y * u, x * u + y * v)))
    assert -5.001 <= min(angles) < -4.8
    assert 4.8 < max(angles) <= 5.001


def test_crop_is_a_window_of_the_clip() -> None:
    lengths, starts = set(), set()
    for seed in range(300):
        before, after = changed(seed, crop=0.5)
        length = after.inputs.shape[1]
        first = round(float(after.inputs.unflatten(2, (V, 3))[:, 0, :, 2].max()) * T) - 1
        assert torch.equal(after.inputs, before.inputs[:, first : first + length])
        lengths.add(length)
        starts.add(first)
    assert lengths == set(range(T // 2, T + 1))
    assert starts == set(range(T // 2 + 1))


def test_dropped_keypoints_are_the_same_for_all_persons_in_a_run_of_frames() -> None:
    most = 0
    for seed in range(100):
        before, after = changed(seed, drop=0.5)
        old, new = (item.inputs.unflatten(2, (V, 3))[..., 2] > 0 for item in (before, after))
        gone = (old & ~new).any(dim=0)
        frames = gone.any(dim=1).nonzero().flatten()
        keypoints = gone.any(dim=0)
        most = max(most, int(keypoints.sum()))
        if len(frames):
            assert int(frames[-1] - frames[0]) < T // 2
            run = new[:, frames[0] : frames[-1] + 1][..., keypoints]
            assert not run.any()
    assert 0.4 * V < most <= math.ceil(0.5 * V)


def test_draws_follow_the_generator_alone() -> None:
    options = {"scale": 0.2, "shift": 0.2, "rotation": 5.0, "crop": 0.5, "drop": 0.3}
    assert torch.equal(changed(3, **options)[1].inputs, changed(3, **options)[1].inputs)
    assert changed(3, **options)[1].inputs.shape != changed(4, **options)[1].inputs.shape


@pytest.mark.parametrize(
    "options", [{"scale": 1.0}, {"shift": -0.1}, {"rotation": 200.0}, {"crop": 1.0}, {"drop": 2.0}]
)
def test_values_out_of_range_are_named(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=rf"data\.options\.{name}: is"):
        Augmentation(**options)
