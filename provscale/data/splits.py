"""What a data set is: its splits, of items loaded by index."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch

from provscale.data.transforms import ItemTransform
from provscale.errors import UserError
from provscale.randomness import numpy_generator
from provscale.registry import Registry
from provscale.sample import Item

Split = Literal["train", "validation", "test"]


class ItemSource(Protocol):
    """A random-access collection of items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def label(self, index: int, /) -> int:
        """Class of one item, without loading it."""


Transform = Callable[[Item], Item]


@dataclass
class DataSplits:
    """A data set as training and evaluation see it.

    Attributes:
        train: real training items.
        test: items that are reported on, at the best and the last epoch.
        num_classes: K.
        class_names: K names.
        validation: items that the best epoch is chosen on; None = there are none, and it is chosen on `test`.
        group_names: names of `annotations["group"]` values, or empty.
        edits: edited images that `synthesis.name: edited` adds, or None.
        train_transform, evaluation_transform: item -> item with float `inputs`; random ones draw from PyTorch's
            global generator, which is seeded for each sample.
        mean, std: the normalisation of evaluated images, to show them again; None = that of `evaluation_transform` if
            it is an `ItemTransform`, else there are no images to show.
        metrics: evaluators that make sense here.
        best: the metric that decides the best epoch.
        train_groups: for each training item, what it must not be parted from when a share is held out (takes of one
            scene, for instance); None = every item stands alone.
        evaluated_train: the training items at given positions as evaluation needs them, e.g. with annotations; None =
            as they are.
        edit_sources: for each edit, the position in `train` of the image that was edited, None where it is unknown.
            So edits of images that are held out are not trained on. None = no edit's source is known.
        training_groups: how many training images each group has, which weights `adjusted_accuracy`; empty = unknown.
        extra_counts: how many extra real images of each class there are that edits stand in for. `synthesis.added`
            edits are then drawn class by class, in these proportions. None = from all edits alike.
    """

    train: ItemSource
    test: ItemSource
    num_classes: int
    class_names: tuple[str, ...]
    train_transform: Transform
    evaluation_transform: Transform
    validation: ItemSource | None = None
    group_names: tuple[str, ...] = ()
    edits: ItemSource | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    metrics: tuple[str, ...] = ("group_accuracy",)
    best: str = "accuracy"
    train_groups: Sequence[Hashable] | None = None
    evaluated_train: Callable[[Sequence[int]], ItemSource] | None = None
    edit_sources: Callable[[], Sequence[int | None]] | None = None
    training_groups: tuple[int, ...] = ()
    extra_counts: tuple[int, ...] | None = None

    @property
    def selected_on(self) -> Split:
        """The split that the best epoch is chosen on."""
        return "test" if self.validation is None else "validation"

    def evaluated(self, split: Split) -> ItemSource:
        """The items of a split as evaluation needs them. Raises UserError when there is no validation split."""
        if split == "test":
            return self.test
        if split == "train":
            return self.train_as_evaluated(range(len(self.train)))
        if self.validation is None:
            raise UserError(
                "data: there is no validation split; use test, or hold out a share of train with data.validation_share"
            )
        return self.validation

    def train_as_evaluated(self, positions: Sequence[int]) -> ItemSource:
        return Chosen(self.train, positions) if self.evaluated_train is None else self.evaluated_train(positions)

    def __post_init__(self) -> None:
        if self.mean is None and isinstance(self.evaluation_transform, ItemTransform):
            self.mean, self.std = (
                tuple(value.flatten().tolist())
                for value in (self.evaluation_transform.mean, self.evaluation_transform.std)
            )


DATA_SETS: Registry[Callable[..., DataSplits]] = Registry("data.name")
"""Builders by name, called with the config's `data` section, the seed and their options (provscale/options.py)."""


def item_id(source: ItemSource, index: int) -> str:
    """What files about one item are called: by the source's method of this name, or else by the item's position."""
    own: Callable[[int], str] | None = getattr(source, "item_id", None)
    return f"{index:06d}" if own is None else own(index)


class OnDemand:
    """An item source that is opened when it is first used, so that what is not used need not be there."""

    def __init__(self, open_source: Callable[[], ItemSource]) -> None:
        self.open_source = open_source

    @cached_property
    def source(self) -> ItemSource:
        return self.open_source()

    def __getstate__(self) -> dict[str, ItemSource]:
        """Loader processes get what was opened."""
        return {"source": self.source}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        return self.source[index]

    def label(self, index: int) -> int:
        return self.source.label(index)

    def item_id(self, index: int) -> str:
        return item_id(self.source, index)


class Joined:
    """Several item sources as one, in order."""

    def __init__(self, *sources: ItemSource) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def locate(self, index: int) -> tuple[ItemSource, int]:
        for source in self.sources:
            if index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(index)

    def __getitem__(self, index: int) -> Item:
        source, inner = self.locate(index)
        return source[inner]

    def label(self, index: int) -> int:
        source, inner = self.locate(index)
        return source.label(inner)


class Chosen:
    """The items of `source` at the given positions."""

    def __init__(self, source: ItemSource, positions: Sequence[int]) -> None:
        self.source, self.positions = source, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Item:
        return self.source[self.positions[index]]

    def label(self, index: int) -> int:
        return self.source.label(self.positions[index])

    def item_id(self, index: int) -> str:
        return item_id(self.source, self.positions[index])


def training_source(splits: DataSplits, added: int | None, seed: int) -> ItemSource:
    """The training items: real ones, then `added` edits (None = all, 0 = none) chosen by `seed`.

    Raises:
        UserError: edits are wanted and the data set has none, or too few, or too few of a class.
    """
    if added == 0:
        return splits.train
    if splits.edits is None:
        raise UserError("synthesis.name: edited, but this data set has no edited images; add a folder 'edits' to it")
    available = len(splits.edits)
    if added is not None and added > available:
        raise UserError(f"synthesis.added: is {added}, but there are only {available} edited images")
    order = numpy_generator(seed, "added edits").permutation(available).tolist()
    if added is not None and splits.extra_counts is not None:
        labels = [splits.edits.label(position) for position in range(available)]
        order = matched(order, labels, splits.extra_counts, added, splits.class_names)
    return Joined(splits.train, Chosen(splits.edits, sorted(order[:added])))


def matched(
    order: Sequence[int], labels: Sequence[int], counts: Sequence[int], added: int, class_names: Sequence[str],
    key: str = "synthesis.added",
) -> list[int]:  # fmt: skip
    """The first of `order` in each class, `added` in all, in proportion to `counts` (largest remainders).

    Args:
        order: positions of edits.
        labels: class of each edit, by position.
        counts: of extra real images of each class.
        key: what set `added`, for messages.

    Raises:
        UserError: a class has too few edits.
    """
    quotas = [added * count // sum(counts) for count in counts]
    remainders = [added * count % sum(counts) for count in counts]
    for label in sorted(range(len(counts)), key=lambda label: -remainders[label])[: added - sum(quotas)]:
        quotas[label] += 1
    chosen: list[int] = []
    for label, quota in enumerate(quotas):
        own = [position for position in order if labels[position] == label]
        if len(own) < quota:
            raise UserError(
                f"{key}: is {added}, of which {quota} are to be of class {class_names[label]}, as many as "
                f"among the extra real images, but there are only {len(own)} such edits; lower it, or set "
                "data.options.match_extra to false"
            )
        chosen += own[:quota]
    return chosen


def class_weights(source: ItemSource, num_classes: int) -> torch.Tensor:
    """Inverse-frequency weights [K] float32, scaled so that their mean over the samples is 1 (as ALIA's training).

    Raises:
        UserError: a class without samples.
    """
    counts = torch.bincount(torch.tensor([source.label(i) for i in range(len(source))]), minlength=num_classes).float()
    if (counts == 0).any():
        missing = int((counts == 0).nonzero()[0])
        raise UserError(
            f"optim.class_weights: class {missing} has no training sample, so its inverse frequency is undefined; "
            "set optim.class_weights to none"
        )
    return counts.sum() / (num_classes * counts)
