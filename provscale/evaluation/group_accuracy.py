"""Top-1 accuracy five ways: over samples, classes and groups, in the worst group, and weighted by training groups.

Which of them a paper means by "top-1" is often left open, so all are reported together. Worst-group accuracy:
Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020.

Shapes: B samples, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.evaluation.base import EVALUATORS, Evaluator, Gather, alone
from provscale.sample import Sample


@dataclass
class GroupCounts:
    """How many samples of each class and of each group were seen, and how many of them predicted correctly."""

    class_total: Counter[int] = field(default_factory=Counter)
    class_correct: Counter[int] = field(default_factory=Counter)
    group_total: Counter[int] = field(default_factory=Counter)
    group_correct: Counter[int] = field(default_factory=Counter)

    def add(self, other: GroupCounts) -> None:
        self.class_total.update(other.class_total)
        self.class_correct.update(other.class_correct)
        self.group_total.update(other.group_total)
        self.group_correct.update(other.group_correct)


def accuracies(correct: Counter[int], total: Counter[int]) -> dict[int, float]:
    """Percent correct of every key present in `total`, in ascending order of key."""
    return {key: 100.0 * correct[key] / total[key] for key in sorted(total)}


def mean(values: dict[int, float]) -> float:
    return sum(values.values()) / len(values)


@EVALUATORS.register("group_accuracy")
class GroupAccuracy(Evaluator):
    """Accuracy in percent, from `outputs["logits"]` [B, K] and `sample.targets[:, 0]`.

    `accuracy`: over samples. `class_balanced`: mean over classes of each class's accuracy. With
    `sample.annotations["group"]` (int [B]) also `group_mean`, `worst_group` and `group/<name>`. Classes and groups
    without a sample take no part: they are neither 0 nor in a mean, and an absent group has no `group/<name>`.

    `adjusted_accuracy`: group_DRO's average, the mean over groups weighted by how many training samples each has
    (`training_groups`), so what the accuracy would be on the training distribution. It is left out where these numbers
    are unknown, or no evaluated group has a training sample.
    """

    requires = frozenset({"logits"})

    def __init__(self, num_classes: int, group_names: Sequence[str] = ()) -> None:
        """`group_names[g]` names group g in the metrics; without names groups are called by their number.

        Raises:
            UserError: two groups of one name.
        """
        repeated = [name for name, count in Counter(group_names).items() if count > 1]
        if repeated:
            raise UserError(f"group_accuracy: two groups are named '{repeated[0]}'; give each group its own name")
        self.num_classes = num_classes
        self.group_names = tuple(group_names)
        self.counts = GroupCounts()

    def accumulate(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Adds one batch.

        Raises:
            UserError: logits that are NaN or not [B, K], a class outside 0..K-1, a group that has no name or is
                negative, or some samples with a group and some without.
        """
        predictions, targets = predictions_and_targets("group_accuracy", sample, outputs, self.num_classes)
        groups = self.groups_of(sample)
        hits = predictions == targets
        self.counts.class_total.update(targets.tolist())
        self.counts.class_correct.update(targets[hits].tolist())
        if groups is not None:
            self.counts.group_total.update(groups.tolist())
            self.counts.group_correct.update(groups[hits].tolist())

    def groups_of(self, sample: Sample) -> Tensor | None:
        """The batch's groups, int [B] on the CPU, or None if the data set has none."""
        if "group" not in sample.annotations:
            return None
        groups = sample.annotations["group"].detach().cpu()
        if groups.shape != (len(sample),) or groups.is_floating_point():
            raise UserError(
                f"group_accuracy: annotation 'group' is {groups.dtype} of shape {tuple(groups.shape)}; "
                f"allowed are integers of shape ({len(sample)},), one per sample"
            )
        groups = groups.long()
        wrong = (groups < 0) | (groups >= len(self.group_names)) if self.group_names else groups < 0
        if bool(wrong.any()):
            named = f"0..{len(self.group_names) - 1} ({', '.join(self.group_names)})"
            allowed = named if self.group_names else "0, 1, 2, ..."
            raise UserError(
                f"sample {first_index(sample, wrong)}: group {int(groups[wrong][0])} is not one of {allowed}; "
                "correct the annotation 'group'"
            )
        return groups

    def compute(self, gather: Gather = alone) -> dict[str, float]:
        """The metrics named in the class's docstring, 0 to 100.

        Raises:
            UserError: no sample was accumulated on any process, or only some samples had a group.
        """
        counts = GroupCounts()
        for part in gather(self.counts):
            counts.add(part)
        if not counts.class_total:
            raise UserError("group_accuracy: no sample was evaluated; check that the evaluation split is not empty")
        samples = counts.class_total.total()
        metrics = {
            "accuracy": 100.0 * counts.class_correct.total() / samples,
            "class_balanced": mean(accuracies(counts.class_correct, counts.class_total)),
        }
        if not counts.group_total:
            return metrics
        if counts.group_total.total() != samples:
            raise UserError(
                f"group_accuracy: {counts.group_total.total()} of {samples} samples have the annotation 'group'; "
                "give it to all samples or to none"
            )
        per_group = accuracies(counts.group_correct, counts.group_total)
        metrics["group_mean"] = mean(per_group)
        metrics["worst_group"] = min(per_group.values())
        weights = {group: self.training_groups[group] for group in per_group if group < len(self.training_groups)}
        if sum(weights.values()):
            weighted = sum(weight * per_group[group] for group, weight in weights.items())
            metrics["adjusted_accuracy"] = weighted / sum(weights.values())
        for group, value in per_group.items():
            metrics[f"group/{self.group_names[group] if self.group_names else group}"] = value
        return metrics


def first_index(sample: Sample, rows: Tensor) -> int:
    """Data set position of the first sample marked in `rows` (bool [B], on the CPU)."""
    return int(sample.index.cpu()[rows][0])


def predictions_and_targets(
    metric: str, sample: Sample, outputs: dict[str, Tensor], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Predicted and true classes, int64 [B] each, on the CPU.

    Raises:
        UserError: logits that are missing, NaN or not [B, K], or a class outside 0..K-1; the message names `metric`.
    """
    if "logits" not in outputs:
        raise UserError(f"{EVALUATORS.key}: {metric} needs the network's 'logits'; choose a classifier")
    logits = outputs["logits"].detach()
    if logits.shape != (len(sample), num_classes):
        raise UserError(
            f"{metric}: logits have shape {tuple(logits.shape)}; expected {(len(sample), num_classes)}, "
            "one row per sample and one column per class of the data set"
        )
    if bool(torch.isnan(logits).any()):
        raise UserError(f"{metric}: the logits contain NaN; the network diverged, use an earlier checkpoint")
    targets = sample.targets[:, 0].cpu()
    wrong = (targets < 0) | (targets >= num_classes)
    if bool(wrong.any()):
        raise UserError(
            f"sample {first_index(sample, wrong)}: class {int(targets[wrong][0])} is outside "
            f"0..{num_classes - 1}; correct the label or the number of classes"
        )
    return logits.argmax(dim=1).cpu(), targets
