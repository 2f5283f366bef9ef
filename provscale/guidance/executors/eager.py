"""The `eager` executor: operation by operation, in two parts if the options say so."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from torch import Tensor, nn

from provscale.guidance.executors.base import EXECUTORS
from provscale.guidance.objective import Gradients, Losses, Objective, is_guided
from provscale.guidance.split_batch import parts_of, refuse_batch_statistics
from provscale.sample import Sample


@EXECUTORS.register("auto")  # where no trainer chooses
@EXECUTORS.register("eager")
class EagerExecutor:
    """Runs the objective as it is; with `split_batch`, a batch's synthetic and real samples one after the other."""

    def __call__(
        self,
        network: nn.Module,
        parameters: Sequence[Tensor],
        sample: Sample,
        objective: Objective,
        alpha: float | Tensor,
        verify: bool = False,
    ) -> tuple[Losses, Gradients]:
        if not (objective.options.split_batch and is_guided(sample, alpha)):
            return objective(network, parameters, sample, alpha, verify=verify)
        refuse_batch_statistics(network)
        # One after the other: the first part's graph is gone before the second part's is built.
        results = [objective(network, parameters, part, alpha, share, verify) for part, share in parts_of(sample)]
        return reduce(added, results)


def added(first: tuple[Losses, Gradients], second: tuple[Losses, Gradients]) -> tuple[Losses, Gradients]:
    """Sums of losses and of gradients; a parameter without a gradient in one of them has the other's."""
    losses = {name: value + second[0][name] for name, value in first[0].items()}
    gradients = [
        one if other is None else other if one is None else one + other
        for one, other in zip(first[1], second[1], strict=True)
    ]
    return losses, gradients
