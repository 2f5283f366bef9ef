"""Group accuracy, gradient energy, and what all evaluators share. Expected numbers are computed by hand."""

from __future__ import annotations

import contextlib
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.evaluation import EVALUATORS, Evaluator, build_evaluators
from provscale.evaluation.gradient_energy import GradientEnergy
from provscale.evaluation.group_accuracy import GroupAccuracy
from provscale.sample import Sample


def labelled(labels: list[int], size: tuple[int, int] = (4, 4), **annotations: Tensor) -> Sample:
    """Blank images with labels and annotations."""
    sample = Sample.real(torch.zeros(len(labels), 3, *size), torch.tensor(labels))
    sample.annotations = annotations
    return sample


def logits_for(predictions: list[int], num_classes: int) -> dict[str, Tensor]:
    return {"logits": torch.nn.functional.one_hot(torch.tensor(predictions), num_classes).float()}


def random_batch(count: int) -> tuple[Sample, dict[str, Tensor]]:
    """Everything any evaluator reads, for `count` images of 24 x 32 pixels, 5 classes and 3 groups."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(count, 2, generator=generator) * 10
    box = torch.cat([low, low + torch.rand(count, 2, generator=generator) * 12], dim=1)
    sample = labelled(
        torch.randint(5, (count,), generator=generator).tolist(),
        size=(24, 32),
        group=torch.randint(3, (count,), generator=generator),
        box=box,
        object_mask=(torch.rand(count, 1, 24, 32, generator=generator) < 0.3).float(),
    )
    gradient = torch.randn(count, 3, 24, 32, generator=generator)
    gradient[::7] = 0
    outputs = {
        # Right for about half of the samples, so that every part of a split has right and wrong ones.
        "logits": torch.randn(count, 5, generator=generator)
        + 1.5 * logits_for(sample.targets[:, 0].tolist(), 5)["logits"],
        "score_map": torch.rand(count, 6, 8, generator=generator),
        "input_gradient": gradient,
    }
    return sample, outputs


def through_pickle(states: list[Any]) -> Any:
    """A `Gather` that returns other processes' states as they arrive: pickled and unpickled."""
    return lambda own: [pickle.loads(pickle.dumps(state)) for state in states]


def own_state(evaluator: Evaluator) -> Any:
    """What `evaluator` hands to gather."""
    handed: list[Any] = []

    def gather(state: Any) -> list[Any]:
        handed.append(state)
        return [state]

    with contextlib.suppress(UserError):  # a process without samples still hands its empty state over
        evaluator.compute(gather)
    return handed[0]


class TestAllEvaluators:
    @pytest.mark.parametrize("name", ["group_accuracy", "maxboxacc", "gradient_energy"])
    def test_three_uneven_processes_give_the_numbers_of_one(self, name: str) -> None:
        sample, outputs = random_batch(23)
        alone = build_evaluators([name], 5, ["a", "b", "c"])[0]
        alone.accumulate(sample, outputs)
        expected = alone.compute()

        # 7 + 0 + 16 samples, the last process in two batches: a process without a sample must not matter.
        parts = [[slice(0, 7)], [], [slice(7, 18), slice(18, 23)]]
        processes = [build_evaluators([name], 5, ["a", "b", "c"])[0] for _ in parts]
        for process, batches in zip(processes, parts, strict=True):
            for rows in batches:
                process.accumulate(sample[rows], {key: value[rows] for key, value in outputs.items()})
        gather = through_pickle([own_state(process) for process in processes])
        for process in processes:
            assert process.compute(gather) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("name", list(EVALUATORS))
    def test_nothing_accumulated_is_a_user_error(self, name: str) -> None:
        evaluator = EVALUATORS[name](num_classes=3, group_names=())
        state = own_state(evaluator)
        with pytest.raises(UserError, match=name):
            evaluator.compute()
        with pytest.raises(UserError, match=name):
            evaluator.compute(lambda own: [own, state])

    @pytest.mark.parametrize("name", ["group_accuracy", "maxboxacc", "gradient_energy"])
    def test_state_does_not_grow_with_samples(self, name: str) -> None:
        sample, outputs = random_batch(30)
        evaluator = build_evaluators([name], 5)[0]
        evaluator.accumulate(sample, outputs)
        once = len(pickle.dumps(own_state(evaluator)))
        for _ in range(4):
            evaluator.accumulate(sample, outputs)
        assert len(pickle.dumps(own_state(evaluator))) <= once + 64  # counters grow by a digit, nothing more
        assert once < 64 * 1024

    @pytest.mark.parametrize("name", ["group_accuracy", "maxboxacc", "gradient_energy"])
    def test_a_missing_output_is_named(self, name: str) -> None:
        sample, _ = random_batch(2)
        evaluator = build_evaluators([name], 5)[0]
        (required,) = evaluator.requires
        with pytest.raises(UserError, match=f"{name}.*'{required}'"):
            evaluator.accumulate(sample, {})

    def test_build_keeps_the_order_and_refuses_unknown_and_repeated_names(self) -> None:
        built = build_evaluators(["gradient_energy", "group_accuracy"], 3)
        assert [type(evaluator) for evaluator in built] == [GradientEnergy, GroupAccuracy]
        with pytest.raises(UserError, match="did you mean 'maxboxacc'"):
            build_evaluators(["maxboxac"], 3)
        with pytest.raises(UserError, match="'maxboxacc' is listed more than once"):
            build_evaluators(["maxboxacc", "maxboxacc"], 3)


class TestGroupAccuracy:
    def test_against_hand_counts(self) -> None:
        # Class 0: 3 of 4 right. Class 1: 1 of 2. Class 3: 0 of 1. Class 2 is absent. Micro: 4 of 7.
        # Group 0 (samples 0, 1, 4): 3 of 3. Group 2 (samples 2, 3, 5, 6): 1 of 4. Group 1 is absent.
        sample = labelled([0, 0, 0, 0, 1, 1, 3], group=torch.tensor([0, 0, 2, 2, 0, 2, 2]))
        evaluator = GroupAccuracy(num_classes=4, group_names=("land", "sky", "water"))
        evaluator.accumulate(sample, logits_for([0, 0, 0, 1, 1, 0, 2], 4))
        assert evaluator.compute() == pytest.approx(
            {
                "accuracy": 100 * 4 / 7,
                "class_balanced": 100 * (3 / 4 + 1 / 2 + 0) / 3,
                "group_mean": 100 * (3 / 3 + 1 / 4) / 2,
                "worst_group": 100 * 1 / 4,
                "group/land": 100.0,
                "group/water": 25.0,
            }
        )

    def test_without_groups_only_the_two_class_metrics(self) -> None:
        evaluator = GroupAccuracy(num_classes=2, group_names=("a", "b"))
        evaluator.accumulate(labelled([0, 0, 0, 1]), logits_for([0, 0, 1, 1], 2))
        assert evaluator.compute() == pytest.approx({"accuracy": 75.0, "class_balanced": 100 * (2 / 3 + 1) / 2})

    def test_groups_without_names_are_called_by_their_number(self) -> None:
        evaluator = GroupAccuracy(num_classes=2)
        evaluator.accumulate(labelled([0, 1], group=torch.tensor([7, 2])), logits_for([0, 0], 2))
        metrics = evaluator.compute()
        assert (metrics["group/7"], metrics["group/2"], metrics["worst_group"]) == (100.0, 0.0, 0.0)

    def test_a_soft_label_counts_as_its_first_class(self) -> None:
        sample = labelled([1, 1])
        sample.targets = torch.tensor([[1, 0], [0, 1]])
        evaluator = GroupAccuracy(num_classes=2)
        evaluator.accumulate(sample, logits_for([1, 1], 2))
        assert evaluator.compute()["accuracy"] == 50.0

    @pytest.mark.parametrize(
        ("sample", "outputs", "message"),
        [
            (labelled([0, 2]), logits_for([0, 0], 2), r"sample 1: class 2 is outside 0\.\.1"),
            (labelled([0, -1]), logits_for([0, 0], 2), r"sample 1: class -1 is outside"),
            (labelled([0, 1]), logits_for([0, 0], 3), r"logits have shape \(2, 3\); expected \(2, 2\)"),
            (labelled([0]), {"logits": torch.tensor([[math.nan, 1.0]])}, "NaN"),
            (labelled([0], group=torch.tensor([2])), logits_for([0], 2), r"sample 0: group 2 .* 0\.\.1 \(a, b\)"),
            (labelled([0], group=torch.tensor([-1])), logits_for([0], 2), "sample 0: group -1"),
            (labelled([0], group=torch.tensor([[0]])), logits_for([0], 2), r"'group' is torch.int64 of shape \(1, 1\)"),
            (labelled([0], group=torch.tensor([0.5])), logits_for([0], 2), "'group' is torch.float32"),
        ],
    )
    def test_bad_input_is_a_user_error(self, sample: Sample, outputs: dict[str, Tensor], message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            GroupAccuracy(num_classes=2, group_names=("a", "b")).accumulate(sample, outputs)
        assert "\n" not in str(caught.value)

    def test_groups_for_some_samples_only_are_refused(self) -> None:
        evaluator = GroupAccuracy(num_classes=2)
        evaluator.accumulate(labelled([0], group=torch.tensor([0])), logits_for([0], 2))
        evaluator.accumulate(labelled([0]), logits_for([0], 2))
        with pytest.raises(UserError, match="1 of 2 samples have the annotation 'group'"):
            evaluator.compute()

    def test_two_groups_of_one_name_are_refused(self) -> None:
        with pytest.raises(UserError, match="two groups are named 'a'"):
            GroupAccuracy(num_classes=2, group_names=("a", "b", "a"))


class TestGradientEnergy:
    def test_against_hand_sums(self) -> None:
        # Sample 0: gradient 3 on the object, 1 and 2 outside: (1 + 4) / (9 + 1 + 4) outside; area 3 of 4 outside.
        # Sample 1: two channels 1 on the object's row, 1 in one channel outside: 1 / 5; area 2 of 4 outside.
        # Sample 2: no gradient: counted, in neither mean.
        gradient = torch.zeros(3, 2, 2, 2)
        gradient[0, 0] = torch.tensor([[3.0, -1.0], [0.0, 0.0]])
        gradient[0, 1] = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        gradient[1] = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        gradient[1, 0, 1, 1] = -1.0
        mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[1.0, 1.0], [0.0, 0.0]]], [[[1.0, 0.0], [0.0, 0.0]]]])
        evaluator = GradientEnergy(num_classes=2)
        evaluator.accumulate(labelled([0, 0, 1], (2, 2), object_mask=mask), {"input_gradient": gradient})
        assert evaluator.compute() == pytest.approx(
            {
                "gradient_energy": 100 * (5 / 14 + 1 / 5) / 2,
                "gradient_energy/area_outside": 100 * (3 / 4 + 2 / 4) / 2,
                "gradient_energy/zero_gradients": 1.0,
            }
        )

    def test_an_even_gradient_gives_the_area_share(self) -> None:
        sample, _ = random_batch(6)
        evaluator = GradientEnergy(num_classes=5)
        evaluator.accumulate(sample, {"input_gradient": torch.full((6, 3, 24, 32), -0.25)})
        metrics = evaluator.compute()
        assert metrics["gradient_energy"] == pytest.approx(metrics["gradient_energy/area_outside"])

    def test_tiny_gradients_are_not_taken_for_zero(self) -> None:
        # 1e-30 squared is 1e-60, zero in float32.
        mask = torch.zeros(1, 1, 1, 4)
        mask[..., 0] = 1
        evaluator = GradientEnergy(num_classes=2)
        evaluator.accumulate(
            labelled([0], (1, 4), object_mask=mask), {"input_gradient": torch.full((1, 1, 1, 4), 1e-30)}
        )
        assert evaluator.compute()["gradient_energy"] == pytest.approx(75.0)

    def test_boxes_stand_in_for_a_missing_mask(self) -> None:
        # Box 1,0 to 2,1 inclusive: 4 of 20 pixels. Second sample: the union of two boxes, 4 + 1 pixels.
        nan = [math.nan] * 4
        boxes = torch.tensor([[[1.0, 0.0, 2.9, 1.2], nan], [[1.0, 0.0, 2.0, 1.0], [4.0, 3.0, 4.0, 3.0]]])
        evaluator = GradientEnergy(num_classes=2)
        evaluator.accumulate(labelled([0, 0], (4, 5), box=boxes), {"input_gradient": torch.ones(2, 3, 4, 5)})
        assert evaluator.compute()["gradient_energy"] == pytest.approx(100 * (16 / 20 + 15 / 20) / 2)

    def test_only_zero_gradients_have_no_share(self) -> None:
        evaluator = GradientEnergy(num_classes=2)
        mask = torch.ones(2, 1, 4, 4)
        evaluator.accumulate(labelled([0, 1], object_mask=mask), {"input_gradient": torch.zeros(2, 3, 4, 4)})
        metrics = evaluator.compute()
        assert math.isnan(metrics["gradient_energy"])
        assert math.isnan(metrics["gradient_energy/area_outside"])
        assert metrics["gradient_energy/zero_gradients"] == 2

    @pytest.mark.parametrize(
        ("annotations", "gradient", "message"),
        [
            ({"group": torch.zeros(1)}, torch.ones(1, 3, 4, 4), "'object_mask' or 'box' and the data set gives: group"),
            (
                {"object_mask": torch.ones(1, 1, 4, 5)},
                torch.ones(1, 3, 4, 4),
                r"'object_mask' has shape \(1, 1, 4, 5\)",
            ),
            ({"object_mask": torch.full((1, 1, 4, 4), 0.5)}, torch.ones(1, 3, 4, 4), "sample 0: object_mask holds 0.5"),
            ({"object_mask": torch.ones(1, 1, 4, 4)}, torch.full((1, 3, 4, 4), math.inf), "sample 0: .* not finite"),
            ({"object_mask": torch.ones(1, 1, 4, 4)}, torch.ones(1, 3, 4), r"shape \(1, 3, 4\)"),
            ({"box": torch.tensor([[2.0, 0.0, 1.0, 3.0]])}, torch.ones(1, 3, 4, 4), "sample 0: box"),
        ],
    )
    def test_bad_input_is_a_user_error(self, annotations: dict[str, Tensor], gradient: Tensor, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            GradientEnergy(num_classes=2).accumulate(labelled([0], (4, 4), **annotations), {"input_gradient": gradient})
        assert "\n" not in str(caught.value)
