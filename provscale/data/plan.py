"""Which samples make which batch: a pure function of (seed, epoch, step), on any number of processes.

A global batch is a run of consecutive positions of the epoch's permutation. It is cut into `world_size *
accumulation` equal chunks; process r takes chunks m * world_size + r for its micro-batches m. So two processes, or
one with two micro-batches, see the same chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from provscale.errors import UserError
from provscale.randomness import numpy_generator
from provscale.synthesis.base import neighbours


@dataclass(frozen=True)
class MicroBatch:
    """One process's part of a global batch.

    Attributes:
        step: optimizer step within the epoch.
        indices: positions in the data set: this process's `size` samples first, then partners from other chunks.
        size: samples this process trains on.
        partners: for each of the `size` samples, the row of its mixing partner in `indices`.
        last: whether the optimizer steps after it.
    """

    step: int
    indices: list[int]
    size: int
    partners: list[int]
    last: bool


@dataclass(frozen=True)
class BatchPlan:
    """The plan of a training set of `length` samples.

    Attributes:
        batch_size: global.
        pairs: whether samples are mixed with partners.
    """

    length: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1
    drop_last: bool = True
    pairs: bool = False

    def __post_init__(self) -> None:
        """Raises UserError when the batches cannot be divided equally."""
        chunks = self.world_size * self.accumulation
        parts = f"{self.world_size} processes x train.accumulation {self.accumulation}"
        if self.batch_size % chunks:
            raise UserError(
                f"data.batch_size: {self.batch_size} cannot be divided equally over {parts}; "
                f"use a multiple of {chunks}, e.g. {max(self.batch_size // chunks, 1) * chunks}, or another world size"
            )
        if self.length == 0:
            raise UserError("data: the training set is empty; check data.root and its files")
        largest = self.length // chunks * chunks
        if largest == 0:
            raise UserError(
                f"data: {self.length} training samples are fewer than {parts}; use fewer processes or more data"
            )
        if self.drop_last and self.length < self.batch_size:
            raise UserError(
                f"data.batch_size: {self.batch_size} exceeds the {self.length} training samples, so no batch is full; "
                f"use at most {largest}"
            )
        rest = self.length % self.batch_size
        if not self.drop_last and rest % chunks:
            advice = f"use at most {largest} and set" if self.length < self.batch_size else "set"
            key = "data.batch_size" if self.length < self.batch_size else "data.drop_last"
            raise UserError(
                f"{key}: the last batch has {rest} samples, which cannot be divided equally over {parts}; "
                f"{advice} data.drop_last to true"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def order(self, epoch: int) -> list[int]:
        """The epoch's permutation of the training set."""
        return numpy_generator(self.seed, "order", epoch).permutation(self.length).tolist()

    def micro_batches(self, epoch: int, first_step: int = 0) -> Iterator[MicroBatch]:
        """This process's micro-batches of an epoch, from `first_step` on."""
        order = self.order(epoch)
        chunks = self.world_size * self.accumulation
        for step in range(first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            size = len(batch) // chunks
            partner_of = neighbours(len(batch))
            for micro in range(self.accumulation):
                start = (micro * self.world_size + self.rank) * size
                positions = list(range(start, start + size))
                if self.pairs:
                    wanted = [partner_of[position] for position in positions]
                    positions += sorted(set(wanted) - set(positions))
                    partners = [positions.index(position) for position in wanted]
                else:
                    partners = []
                yield MicroBatch(
                    step, [batch[position] for position in positions], size, partners, micro == self.accumulation - 1
                )

    def upcoming(self, first_step: int, end: int) -> Iterator[tuple[int, MicroBatch]]:
        """Epoch and micro-batch, from one optimizer step of the whole training on, up to another."""
        step = first_step
        while step < end:
            epoch, first = divmod(step, self.steps_per_epoch)
            for micro in self.micro_batches(epoch, first):
                yield epoch, micro
                step += micro.last
                if step == end:
                    return


def evaluation_batches(length: int, batch_size: int, rank: int, world_size: int) -> list[tuple[list[int], int]]:
    """This process's evaluation batches: (indices, how many of them count).

    Every process gets equally many batches of equal sizes, because sharded engines communicate inside a forward
    pass; what is repeated to fill up comes last in a batch and does not count.
    """
    mine = list(range(rank, length, world_size))
    share = -(-length // world_size)
    padded = mine + [0] * (share - len(mine))
    return [
        (padded[start : start + batch_size], len(mine[start : start + batch_size]))
        for start in range(0, share, batch_size)
    ]
