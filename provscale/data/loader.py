"""How a data set's items become batches: prepared, transformed and stacked, in worker processes or not."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from provscale.data.host_batch import HostSample, host_batch
from provscale.data.splits import ItemSource, Transform
from provscale.data.transforms import ItemTransform
from provscale.errors import UserError
from provscale.randomness import seeded
from provscale.sample import Item
from provscale.signals import ignore_stop_signals, stop_signals_ignored
from provscale.user_modules import import_modules, imported


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
        RuntimeError: "DataLoader worker ...", when a worker process died.
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
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            # Here, because a worker would send the whole transform along with every batch.
            batch.normalise = items.normalise if batch.inputs.dtype == torch.uint8 else None
            yield batch
    except (ConnectionError, EOFError) as error:
        # A batch's memory is asked of the worker that made it. Of one that died a moment ago PyTorch may not know yet.
        if not workers or "in DataLoader worker process" in str(error):  # raised by the data set itself
            raise
        raise RuntimeError(f"DataLoader worker exited unexpectedly ({type(error).__name__})") from error


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

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process imports the user's modules before it reads the items, which may be of their classes."""
        return _caught_items, (imported(),), self.__dict__


def _caught_items(modules: tuple[str, ...]) -> _CaughtItems:
    import_modules(modules)
    return _CaughtItems.__new__(_CaughtItems)


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
