"""Where the validation split comes from: the data set has one, or a share of its training items is held out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence, Set
from dataclasses import replace

from provscale.config import DataConfig
from provscale.data.splits import DATA_SETS, Chosen, DataSplits, ItemSource, OnDemand
from provscale.errors import UserError
from provscale.options import build_part
from provscale.randomness import numpy_generator


def build_splits(config: DataConfig, seed: int) -> DataSplits:
    """The data set that a config names, with the validation split that `data.validation_share` asks for.

    Raises:
        UserError: whatever the data set finds wrong; a share is to be held out where a validation split exists, or
            where no class has two items (groups) to part.
    """
    splits = build_part(DATA_SETS, config.name, config.options, config, seed)
    share = config.validation_share
    if share is None:
        return splits
    if share == 0:
        return replace(splits, validation=None)
    if splits.validation is not None:
        raise UserError(
            f"data.validation_share: is {share}, but this data set has a validation split; set it to null to use that"
        )
    return hold_out(splits, share, seed)


def hold_out(splits: DataSplits, share: float, seed: int) -> DataSplits:
    """Parts `share` of each class of `train` from it, as the validation split; chosen by `seed`.

    Edits of the images that are held out leave the data set with them.

    Raises:
        UserError: no class has two items (groups).
    """
    source = splits.train
    labels = [source.label(index) for index in range(len(source))]
    held = held_out_positions(labels, splits.train_groups or range(len(labels)), share, seed)
    if not held:
        raise UserError(
            f"data.validation_share: is {share}, but no class has two training items that may be parted; set it to 0, "
            "which chooses the best epoch on test"
        )
    apart = set(held)
    kept = [index for index in range(len(source)) if index not in apart]
    return replace(
        splits,
        train=Chosen(source, kept),
        validation=splits.train_as_evaluated(held),
        edits=None if splits.edits is None else OnDemand(lambda: edits_of_others(splits, apart)),
        evaluated_train=lambda positions: splits.train_as_evaluated([kept[position] for position in positions]),
        train_groups=None,
        edit_sources=None,
    )


def edits_of_others(splits: DataSplits, held_out: Set[int]) -> ItemSource:
    """The edits of training images that are not held out. Raises UserError when it is unknown what was edited."""
    edits = splits.edits
    assert edits is not None
    sources: Sequence[int | None] = splits.edit_sources() if splits.edit_sources else [None] * len(edits)
    if None in sources:
        raise UserError(
            f"data.validation_share: it is unknown which training image {edits[sources.index(None)].name} is an edit "
            "of, and nothing of those held out may be trained on; name the source of every edit, or give the data set "
            "a validation split"
        )
    return Chosen(edits, [number for number, source in enumerate(sources) if source not in held_out])


def held_out_positions(labels: Sequence[int], groups: Sequence[Hashable], share: float, seed: int) -> list[int]:
    """Positions of about `share` of each class's items: whole groups, at least one of each class, never all.

    A class with one group only stays whole. A group's class is that of its first item.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        members[group].append(position)
    by_class: dict[int, list[list[int]]] = defaultdict(list)
    for positions in members.values():
        by_class[labels[positions[0]]].append(positions)
    held: list[int] = []
    for label in sorted(by_class):
        parts = by_class[label]
        wanted = share * sum(len(part) for part in parts)
        order = numpy_generator(seed, "validation", label).permutation(len(parts)).tolist()
        taken = 0
        for number in order[:-1]:
            if taken and taken + len(parts[number]) / 2 > wanted:
                break
            held += parts[number]
            taken += len(parts[number])
    return sorted(held)
