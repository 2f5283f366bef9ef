"""Executors by name. The modules below register themselves when imported."""

from provscale.guidance.executors import compiled, cuda_graph, eager  # noqa: F401  (they register)
from provscale.guidance.executors.base import EXECUTORS, Executor

__all__ = ["EXECUTORS", "Executor"]
