"""What an evaluator is: accumulate batches on every process, then compute one set of numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from provscale.registry import Registry
from provscale.sample import Sample

if TYPE_CHECKING:
    from provscale.data.splits import ItemSource

Gather = Callable[[Any], list[Any]]
"""Takes one picklable object from each process, returns the list of all of them, in rank order, on every process."""


def alone(state: Any) -> list[Any]:
    """The `Gather` of a single process."""
    return [state]


class Evaluator(ABC):
    """Accumulates over evaluation batches; every process sees different samples, none twice.

    Attributes:
        requires: which outputs the network must provide: `logits` float32 [B, K]; `score_map` float32 [B, h, w],
            class activation map of the true class; `input_gradient` float32 of the inputs' shape, gradient of the
            true class's logit; `instance_scores` float32 [B, ..., K], logits of the parts of an input, such as its
            skeletons.
        training_groups: how many training samples each group has; empty = unknown.
        validation: on test, the metrics that the same weights have on validation, where there is such a split; else
            empty. A metric that chooses something, such as a threshold, can report with that choice besides.
    """

    requires: frozenset[str] = frozenset({"logits"})
    training_groups: Sequence[int] = ()
    validation: Mapping[str, float] = MappingProxyType({})

    def begin(self, source: ItemSource) -> None:  # noqa: B027  (most evaluators need nothing)
        """Called once before the first batch with the items to come, for ground truth that fits no annotations."""

    @abstractmethod
    def accumulate(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Adds one batch. `sample` and `outputs` may be on any device."""

    @abstractmethod
    def compute(self, gather: Gather = alone) -> dict[str, float]:
        """The metrics over all processes' batches, the same on every process. Percentages are 0 to 100."""


EVALUATORS: Registry[Callable[..., Evaluator]] = Registry("evaluation.metrics")
"""Builders by name, called with `num_classes` and `group_names` (tuple of str, possibly empty) as keywords."""
