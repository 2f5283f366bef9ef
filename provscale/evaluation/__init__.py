"""Evaluators by name: every process accumulates its batches, `compute` gathers them into one set of numbers.

The modules below register themselves when imported; a new metric is one new file and one line here.
"""

from __future__ import annotations

from collections.abc import Sequence

from provscale.errors import UserError
from provscale.evaluation import (  # noqa: F401  (they register)
    gradient_energy,
    group_accuracy,
    macro_f1,
    maxboxacc,
    pxap,
    sat_localization,
    video_ap_evaluator,
)
from provscale.evaluation.base import EVALUATORS, Evaluator, Gather, alone

__all__ = ["EVALUATORS", "Evaluator", "Gather", "alone", "build_evaluators"]


def build_evaluators(
    names: Sequence[str], num_classes: int, group_names: Sequence[str] = (), training_groups: Sequence[int] = ()
) -> list[Evaluator]:
    """The evaluators a config asks for, in its order and with nothing accumulated.

    Args:
        names: names in `EVALUATORS`, each at most once.
        num_classes: K, the number of classes of the data set.
        group_names: name of each group index in `annotations["group"]`; may be empty.
        training_groups: number of training samples of each group; empty = unknown.

    Raises:
        UserError: an unknown or repeated name.
    """
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise UserError(f"{EVALUATORS.key}: '{repeated[0]}' is listed more than once; list each name once")
    evaluators = [EVALUATORS[name](num_classes=num_classes, group_names=tuple(group_names)) for name in names]
    for evaluator in evaluators:
        evaluator.training_groups = training_groups
    return evaluators
