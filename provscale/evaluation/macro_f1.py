"""F1 and recall averaged over the classes that occur; WILDS reports such F1 on iWildCam (Koh et al., ICML 2021)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from provscale.errors import UserError
from provscale.evaluation.base import EVALUATORS, Evaluator, Gather, alone
from provscale.evaluation.group_accuracy import predictions_and_targets
from provscale.sample import Sample


@EVALUATORS.register("macro_f1")
class MacroF1(Evaluator):
    """From `outputs["logits"]` [B, K] and `sample.targets[:, 0]`, in percent.

    `macro_f1`: mean over classes of 2 TP / (2 TP + FP + FN). `macro_recall`: mean over classes of TP / (TP + FN). Both
    over the classes that have a sample: predictions of
    another class count as misses, and nowhere else.
    """

    requires = frozenset({"logits"})

    def __init__(self, num_classes: int, group_names: Sequence[str] = ()) -> None:
        self.num_classes = num_classes
        self.pairs: Counter[tuple[int, int]] = Counter()
        """How often each (true class, predicted class) was seen."""

    def accumulate(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Adds one batch. Raises UserError as `predictions_and_targets`."""
        predictions, targets = predictions_and_targets("macro_f1", sample, outputs, self.num_classes)
        self.pairs.update(zip(targets.tolist(), predictions.tolist(), strict=True))

    def compute(self, gather: Gather = alone) -> dict[str, float]:
        """The metrics named in the class's docstring.

        Raises:
            UserError: no sample was accumulated on any process.
        """
        pairs: Counter[tuple[int, int]] = Counter()
        for part in gather(self.pairs):
            pairs.update(part)
        if not pairs:
            raise UserError("macro_f1: no sample was evaluated; check that the evaluation split is not empty")
        true: Counter[int] = Counter()
        predicted: Counter[int] = Counter()
        for (target, prediction), count in pairs.items():
            true[target] += count
            predicted[prediction] += count
        # 2 TP + FP + FN = (TP + FN) + (TP + FP).
        f1 = [2 * pairs[label, label] / (true[label] + predicted[label]) for label in true]
        recall = [pairs[label, label] / true[label] for label in true]
        return {"macro_f1": 100 * sum(f1) / len(true), "macro_recall": 100 * sum(recall) / len(true)}
