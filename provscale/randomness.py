"""Randomness as a pure function of a key such as (seed, epoch, index) or (seed, step): resume needs no saved state."""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info


def key_to_seed(*key: int | str) -> int:
    """A 63-bit seed from a key: the first bytes of its SHA-256, equal on every machine and Python version.

    >>> key_to_seed(0, "augment", 3) == key_to_seed(0, "augment", 3)
    True
    """
    # NumPy's integers print differently from Python's, so they would be another key.
    plain = tuple(part if isinstance(part, str) else operator.index(part) for part in key)
    digest = hashlib.sha256(repr(plain).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(*key: int | str) -> np.random.Generator:
    """An independent NumPy generator for this key."""
    return np.random.default_rng(key_to_seed(*key))


def seed_everything(*key: int | str) -> None:
    """Seeds the global generators of PyTorch (every device), NumPy and Python."""
    seed = key_to_seed(*key)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Seeds the CPU generators of PyTorch, NumPy and Python inside the block and restores them after it.

    For code that draws from global generators, such as transforms. In a loader's worker process nothing is restored:
    nothing else draws there, and saving NumPy's state takes longer than cropping an image.
    """
    restore = get_worker_info() is None
    if restore:
        states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    seed = key_to_seed(*key)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        if restore:
            torch.default_generator.set_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])
