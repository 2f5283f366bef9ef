"""macro_f1, macro_recall and adjusted_accuracy against sums written out by hand."""

from __future__ import annotations

import pytest
import torch

from provscale.errors import UserError
from provscale.evaluation import Evaluator, build_evaluators
from provscale.sample import Sample

TRUE, PREDICTED = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 3, 2]


def accumulated(evaluator: Evaluator, groups: list[int] | None = None) -> Evaluator:
    sample = Sample.real(torch.zeros(6, 3, 4, 4), torch.tensor(TRUE))
    if groups is not None:
        sample.annotations = {"group": torch.tensor(groups)}
    evaluator.accumulate(sample, {"logits": torch.nn.functional.one_hot(torch.tensor(PREDICTED), 4).float()})
    return evaluator


def test_macro_f1_and_recall() -> None:
    """Class 3 has no sample: predicting it is a miss of class 1, and it is in no mean."""
    found = accumulated(build_evaluators(["macro_f1"], 4)[0]).compute()
    # class 0: TP 2, FP 0, FN 1; class 1: TP 1, FP 1, FN 1; class 2: TP 1
    assert found["macro_f1"] == pytest.approx(100 * (4 / 5 + 2 / 4 + 1) / 3)
    assert found["macro_recall"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)


def test_processes_are_added_up() -> None:
    evaluator = accumulated(build_evaluators(["macro_f1"], 4)[0])
    assert evaluator.compute(lambda own: [own, own]) == pytest.approx(evaluator.compute())
    with pytest.raises(UserError, match="macro_f1: no sample"):
        build_evaluators(["macro_f1"], 4)[0].compute()


def test_adjusted_accuracy() -> None:
    """Group a has 3 of 4 right, group b 1 of 2; a has 10 training samples, b 30."""
    groups = [0, 0, 0, 0, 1, 1]
    known = accumulated(build_evaluators(["group_accuracy"], 4, ["a", "b"], [10, 30])[0], groups)
    assert known.compute()["adjusted_accuracy"] == pytest.approx((10 * 75 + 30 * 50) / 40)
    unknown = accumulated(build_evaluators(["group_accuracy"], 4, ["a", "b"])[0], groups)
    assert "adjusted_accuracy" not in unknown.compute()
