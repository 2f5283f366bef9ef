"""BatchPlan: the same global batches and partners on any number of processes, from any step on."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from provscale.data.plan import BatchPlan, MicroBatch, evaluation_batches
from provscale.errors import UserError
from provscale.randomness import key_to_seed, numpy_generator, seed_everything, seeded

LENGTH, BATCH = 200, 24
# 24 is divisible by all of these; 30 over 2 gives odd chunks, where neighbours meet across a border.
DIVISIONS = [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 3), (2, 2), (2, 3), (4, 3), (8, 3), (24, 1)]


def all_micro_batches(world_size: int, accumulation: int = 1, **settings: Any) -> list[list[MicroBatch]]:
    """[process][micro-batch] of epoch 0."""
    settings = {"length": LENGTH, "batch_size": BATCH, "seed": 5, **settings}
    plans = (
        BatchPlan(rank=rank, world_size=world_size, accumulation=accumulation, **settings) for rank in range(world_size)
    )
    return [list(plan.micro_batches(0)) for plan in plans]


def own(micro: MicroBatch) -> list[int]:
    return micro.indices[: micro.size]


def global_batches(processes: list[list[MicroBatch]]) -> dict[int, list[int]]:
    """All indices trained on at each step, over processes and micro-batches."""
    found: dict[int, list[int]] = {}
    for micro_batches in processes:
        for micro in micro_batches:
            found.setdefault(micro.step, []).extend(own(micro))
    return found


def partners_of(processes: list[list[MicroBatch]]) -> dict[tuple[int, int], int]:
    """(step, index) -> index of its mixing partner."""
    return {
        (micro.step, index): micro.indices[partner]
        for micro_batches in processes
        for micro in micro_batches
        for index, partner in zip(own(micro), micro.partners, strict=True)
    }


def test_an_epoch_visits_every_sample_once() -> None:
    (micro_batches,) = all_micro_batches(1, drop_last=False, batch_size=20)
    assert sorted(index for micro in micro_batches for index in own(micro)) == list(range(LENGTH))
    assert [micro.step for micro in micro_batches] == list(range(10))


def test_drop_last_leaves_out_the_short_batch_only() -> None:
    (micro_batches,) = all_micro_batches(1)
    plan = BatchPlan(LENGTH, BATCH, 5)
    assert plan.steps_per_epoch == 200 // 24 == len(micro_batches)
    visited = [index for micro in micro_batches for index in own(micro)]
    assert visited == plan.order(0)[: 8 * 24]
    assert len(set(visited)) == 8 * 24
    kept = BatchPlan(LENGTH, BATCH, 5, drop_last=False)
    assert kept.steps_per_epoch == 9
    assert [micro.size for micro in kept.micro_batches(0)] == [24] * 8 + [8]


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = [BatchPlan(LENGTH, BATCH, seed).order(epoch) for seed in (5, 6) for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(LENGTH)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    assert BatchPlan(LENGTH, BATCH, 5).order(1) == orders[1]
    # A random permutation of n has one fixed point on average: far fewer than n / 10.
    assert max(sum(a == b for a, b in zip(order, range(LENGTH), strict=True)) for order in orders) < 20


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("world_size", "accumulation"), DIVISIONS)
def test_processes_and_micro_batches_divide_the_global_batch(world_size: int, accumulation: int, pairs: bool) -> None:
    """No index twice, none lost: per step, the union is the batch of one process."""
    processes = all_micro_batches(world_size, accumulation, pairs=pairs)
    expected = global_batches(all_micro_batches(1))
    found = global_batches(processes)
    assert {step: sorted(batch) for step, batch in found.items()} == {
        step: sorted(batch) for step, batch in expected.items()
    }
    for micro_batches in processes:
        assert {micro.size for micro in micro_batches} == {BATCH // (world_size * accumulation)}
        assert [micro.last for micro in micro_batches] == ([False] * (accumulation - 1) + [True]) * 8
        assert [micro.step for micro in micro_batches] == [step for step in range(8) for _ in range(accumulation)]


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (2, 2), (2, 3), (4, 1)])
def test_micro_batches_stand_in_for_processes(world_size: int, accumulation: int) -> None:
    """One process that accumulates sees the chunks that several processes see, in their order."""
    chunks = world_size * accumulation
    (alone,) = all_micro_batches(1, chunks)
    processes = all_micro_batches(world_size, accumulation)
    for step in range(8):
        expected = [own(micro) for micro in alone if micro.step == step]
        found = [
            own([micro for micro in micro_batches if micro.step == step][part])
            for part in range(accumulation)
            for micro_batches in processes
        ]
        assert found == expected


@pytest.mark.parametrize(
    ("batch_size", "divisions"),
    [
        (24, DIVISIONS),
        (30, [(1, 1), (2, 1), (3, 1), (2, 3), (5, 2), (10, 3), (30, 1)]),
        (15, [(3, 1), (1, 5), (15, 1)]),
    ],
)
def test_partners_do_not_depend_on_the_division(batch_size: int, divisions: list[tuple[int, int]]) -> None:
    """Neighbours 2i and 2i + 1 of the global batch, also where a border runs between them (30 over 2: chunks of 15)."""
    expected: dict[tuple[int, int], int] = {}
    order = BatchPlan(LENGTH, batch_size, 5).order(0)
    for step in range(LENGTH // batch_size):
        batch = order[step * batch_size : (step + 1) * batch_size]
        for position, index in enumerate(batch):
            partner = position + 1 if position % 2 == 0 else position - 1
            if partner == batch_size:  # the last of an odd batch takes the one before
                partner = position - 1
            expected[step, index] = batch[partner]
    for world_size, accumulation in divisions:
        processes = all_micro_batches(world_size, accumulation, batch_size=batch_size, pairs=True)
        assert partners_of(processes) == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_partners_rows_are_valid_and_few(world_size: int) -> None:
    """A process loads at most two samples more than it trains on, one at each border of its chunk."""
    for micro_batches in all_micro_batches(world_size, 1, batch_size=60, pairs=True):
        for micro in micro_batches:
            assert len(micro.partners) == micro.size
            assert max(micro.partners) < len(micro.indices) <= micro.size + 2
            assert len(set(micro.indices)) == len(micro.indices)
            assert all(micro.partners[row] != row for row in range(micro.size))


def test_without_pairs_there_are_no_partners() -> None:
    for micro in all_micro_batches(2)[0]:
        assert micro.partners == []
        assert len(micro.indices) == micro.size


def test_a_batch_of_one_is_its_own_partner() -> None:
    (micro_batches,) = all_micro_batches(1, batch_size=1, pairs=True)
    assert all(micro.partners == [0] and len(micro.indices) == 1 for micro in micro_batches)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("first_step", [0, 1, 5, 8])
def test_resuming_gives_the_tail(world_size: int, accumulation: int, first_step: int) -> None:
    for rank in range(world_size):
        plan = BatchPlan(LENGTH, BATCH, 5, rank, world_size, accumulation, pairs=True)
        whole = list(plan.micro_batches(2))
        assert list(plan.micro_batches(2, first_step)) == whole[first_step * accumulation :]


@pytest.mark.parametrize(
    ("settings", "key", "usable"),
    [
        ({"batch_size": 30, "world_size": 4}, "data.batch_size: 30", {"batch_size": 28}),
        ({"batch_size": 32, "world_size": 3, "accumulation": 2}, "data.batch_size: 32", {"batch_size": 30}),
        ({"batch_size": 2, "world_size": 4}, "data.batch_size: 2", {"batch_size": 4}),
        ({"batch_size": 256}, "data.batch_size: 256 exceeds the 200", {"batch_size": 200}),
        ({"batch_size": 210, "world_size": 3}, "data.batch_size: 210 exceeds the 200", {"batch_size": 198}),
        ({"batch_size": 30, "world_size": 3, "drop_last": False}, "data.drop_last", {"drop_last": True}),
        (
            {"batch_size": 240, "world_size": 3, "drop_last": False},
            "data.batch_size: the last batch has 200",
            {"batch_size": 198, "drop_last": True},
        ),
    ],
)
def test_batches_that_cannot_be_divided(settings: dict[str, Any], key: str, usable: dict[str, Any]) -> None:
    """One line that names the key; following its advice works."""
    settings = {"length": LENGTH, "seed": 0, **settings}
    with pytest.raises(UserError) as caught:
        BatchPlan(**settings)
    message = str(caught.value)
    assert message.startswith(key)
    assert "\n" not in message
    for name, value in usable.items():
        assert (str(value) if name == "batch_size" else "set data.drop_last to true") in message
    BatchPlan(**{**settings, **usable})


def test_no_data() -> None:
    with pytest.raises(UserError, match=r"data: the training set is empty; check data\.root"):
        BatchPlan(0, BATCH, 0)
    with pytest.raises(UserError, match="3 training samples are fewer than 4 processes"):
        BatchPlan(3, 4, 0, world_size=4)


# ---- evaluation --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 10, 13, 24])
def test_every_evaluation_sample_counts_once(length: int, world_size: int, batch_size: int) -> None:
    """And every process gets as many batches, of the same sizes, none empty, none above the limit."""
    processes = [evaluation_batches(length, batch_size, rank, world_size) for rank in range(world_size)]
    counted = Counter(i for batches in processes for indices, counting in batches for i in indices[:counting])
    assert counted == Counter(range(length))
    shapes = [[len(indices) for indices, _ in batches] for batches in processes]
    assert all(shape == shapes[0] for shape in shapes)
    assert all(0 < size <= batch_size for size in shapes[0])
    for batches in processes:
        for indices, counting in batches:
            assert 0 <= counting <= len(indices)
            assert all(0 <= index < length for index in indices)
    # No more than one sample a process is repeated.
    assert sum(len(indices) - counting for batches in processes for indices, counting in batches) < world_size


# ---- keyed randomness --------------------------------------------------------------------------------------------
def test_a_key_gives_the_same_seed_everywhere() -> None:
    """The first 8 bytes, little endian, of the SHA-256 of the tuple as Python prints it, without the lowest bit;
    computed with sha256sum: printf "(0, 'order', 1)" | sha256sum."""
    assert key_to_seed(0, "order", 1) == int.from_bytes(bytes.fromhex("24f925a2834a7c03"), "little") // 2
    assert key_to_seed(np.int64(0), "order", np.int32(1)) == key_to_seed(0, "order", 1)  # type: ignore[arg-type]
    assert 0 <= key_to_seed(1) < 2**63
    with pytest.raises(TypeError):
        key_to_seed(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_is_to_come_is_the_epochs_one_after_another(accumulation: int) -> None:
    """20 samples in batches of 6: 3 steps an epoch. From step 4 (the second of epoch 1) up to 8, in epoch 2."""
    plan = BatchPlan(20, 6, 0, accumulation=accumulation)
    steps = [(epoch, list(plan.micro_batches(epoch))) for epoch in range(3)]
    every = [(epoch, micro) for epoch, micro_batches in steps for micro in micro_batches]
    assert list(plan.upcoming(0, 9)) == every
    assert list(plan.upcoming(4, 8)) == every[4 * accumulation : 8 * accumulation]
    assert list(plan.upcoming(9, 9)) == []


def test_keys_are_told_apart() -> None:
    keys = [(0,), (1,), (0, 0), ("0",), (0, "a"), ("a", 0), (0, 10), (1, 0), (0, 1, 0), (0, 1)]
    assert len({key_to_seed(*key) for key in keys}) == len(keys)
    draws = [numpy_generator(*key).uniform() for key in keys]
    assert len(set(draws)) == len(keys)


def test_seeded_draws_alike_and_restores_the_generators() -> None:
    def draw() -> list[float]:
        return [torch.rand(()).item(), float(np.random.rand()), random.random()]

    seed_everything(9)
    before = draw()
    seed_everything(9)
    with seeded(0, "augment", 1):
        inside = draw()
    after = draw()
    with seeded(0, "augment", 1):
        again = draw()
    with seeded(0, "augment", 2):
        other = draw()
    assert after == before
    assert inside == again
    assert all(a != b for a, b in zip(inside, other, strict=True))
    with pytest.raises(ZeroDivisionError), seeded(1):
        _ = 1 / 0
    seed_everything(9)
    assert draw() == before
