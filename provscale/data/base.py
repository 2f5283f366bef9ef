"""What a data set is, and how its items become batches."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from provscale.config import DataConfig
from provscale.data.transforms import ItemTransform
from provscale.data.transit import HostSample, host_batch
from provscale.errors import UserError
from provscale.randomness import numpy_generator, seeded
from provscale.registry import Registry
from provscale.sample import Item
from provscale.signals import ignore_stop_signals, stop_signals_ignored


class ItemSource(Protocol):
    """A random-access collection of items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def label(self, index: int, /) -> int:
        """Class of one item, without loading it."""


Transform = Callable[[Item], Item]


@dataclass
class DataSplits:
    """A data set as the trainer sees it.

    Attributes:
        train: real training items.
        evaluation: items the metrics are computed on.
        num_classes: K.
        class_names: K names.
        group_names: names of `annotations["group"]` values, or empty.
        edits: edited images that `synthesis.name: edited` adds, or None.
        train_transform, evaluation_transform: item -> item with float `inputs`; random ones draw from PyTorch's
            global generator, which is seeded for each sample.
        mean, std: the normalisation of `inputs`, to show images again.
        metrics: evaluators that make sense here.
        best: the metric that decides the best epoch.
    """

    train: ItemSource
    evaluation: ItemSource
    num_classes: int
    class_names: tuple[str, ...]
    train_transform: Transform
    evaluation_transform: Transform
    group_names: tuple[str, ...] = ()
    edits: ItemSource | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    metrics: tuple[str, ...] = ("group_accuracy",)
    best: str = "accuracy"


DATA_SETS: Registry[Callable[[DataConfig, int], DataSplits]] = Registry("data.name")
"""Builders by name, called with the config's `data` section and the seed."""


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


def training_source(splits: DataSplits, added: int | None, seed: int) -> ItemSource:
    """The training items: real ones, then `added` edits (None = all, 0 = none) chosen by `seed`.

    Raises:
        UserError: edits are wanted and the data set has none, or too few.
    """
    if added == 0:
        return splits.train
    if splits.edits is None:
        raise UserError("synthesis.name: edited, but this data set has no edited images; add a folder 'edits' to it")
    available = len(splits.edits)
    if added is not None and added > available:
        raise UserError(f"synthesis.added: is {added}, but there are only {available} edited images")
    order = numpy_generator(seed, "added edits").permutation(available).tolist()
    return Joined(splits.train, Chosen(splits.edits, sorted(order[:added])))


class LoadedItems(Dataset[tuple[int, Item]]):
    """Items after synthesis preparation and transforms; random draws are keyed by (seed, epoch, index).

    Attributes:
        normalise: what is still to be done to uint8 `inputs`, on the device and for a whole batch; None = nothing.
    """

    def __init__(
        self, source: ItemSource, prepare: Transform, transform: Transform, num_classes: int, seed: int
    ) -> None:
        self.source, self.prepare = source, prepare
        # An image's normalisation is the same for all, so it is left to the device.
        self.move: Transform = transform
        self.normalise: Callable[[torch.Tensor], torch.Tensor] | None = None
        if isinstance(transform, ItemTransform) and type(transform).__call__ is ItemTransform.__call__:
            self.move, self.normalise = transform.move, transform.normalise
        self.num_classes, self.seed = num_classes, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Item]:
        epoch, index = key
        item = self.source[index]
        if not 0 <= item.target < self.num_classes:
            raise UserError(f"{item.name}: label {item.target} is out of range, must be in 0 to {self.num_classes - 1}")
        with seeded(self.seed, "augment", epoch, index):
            return index, self.move(self.prepare(item))


def make_loader(
    items: LoadedItems, batches: Iterable[Sequence[tuple[int, int]]], workers: int, pin_memory: bool
) -> Iterator[HostSample]:
    """Loads the given batches of (epoch, index) keys in order; `to` brings one to its device and finishes it.

    With worker processes, 2 batches a worker are loaded ahead while the caller works; `batches` may be an endless or a
    lazy iterable, of which no more is taken than that.

    Raises:
        UserError: an item that cannot be used, with its name.
    """
    loader: DataLoader[Any] = DataLoader(
        _CaughtItems(items),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_CaughtCollate(items),
        pin_memory=pin_memory,
        multiprocessing_context=worker_context() if workers else None,
        worker_init_fn=ignore_stop_signals,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        # Here, because a worker would send the whole transform along with every batch.
        batch.normalise = items.normalise if batch.inputs.dtype == torch.uint8 else None
        yield batch


def worker_context() -> BaseContext:
    """Loader processes fork from a server that holds no GPU state and has imported PyTorch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "provscale.data"])
    with stop_signals_ignored():
        forkserver.ensure_running()
    return context


class _CaughtItems(Dataset[Any]):
    """Returns a UserError instead of raising it, so that it crosses the process boundary as it is."""

    def __init__(self, items: LoadedItems) -> None:
        self.items = items

    def __getitem__(self, key: tuple[int, int]) -> Any:
        try:
            return self.items[key]
        except UserError as error:
            return error


class _CaughtCollate:
    """Makes batches; returns a UserError likewise, the first one."""

    def __init__(self, items: LoadedItems) -> None:
        self.normalise = items.normalise

    def __call__(self, loaded: list[Any]) -> HostSample | UserError:
        for entry in loaded:
            if isinstance(entry, UserError):
                return entry
        try:
            return host_batch([item for _, item in loaded], [index for index, _ in loaded], self.normalise)
        except UserError as error:
            return error


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
