"""Names for the parts a config can choose: data sets, syntheses, models, evaluators."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from provscale.errors import UserError

T = TypeVar("T")


def nearest(word: str, allowed: list[str]) -> str:
    """Returns ", did you mean 'x'?" for the allowed word closest to `word`, or "" if none is close."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


class Registry(Generic[T]):
    """A dictionary from a config's word to what it builds.

    >>> METRICS = Registry("evaluation.metrics")
    >>> @METRICS.register("accuracy")
    ... class Accuracy: ...
    """

    def __init__(self, key: str) -> None:
        """`key` is the config key that chooses from this registry; error messages name it."""
        self.key = key
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        def add(entry: T) -> T:
            assert name not in self._entries, f"{self.key}: '{name}' is registered twice"
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Raises UserError, with the nearest name, when `name` is unknown."""
        if name not in self._entries:
            hint = nearest(name, list(self._entries))
            raise UserError(f"{self.key}: unknown name '{name}'{hint} (one of: {', '.join(sorted(self._entries))})")
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
