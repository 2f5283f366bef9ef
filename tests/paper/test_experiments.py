"""The experiments of configs/reproduce_tasks.yaml, and how a run is known to be an arm of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from provscale.command_line import parse
from provscale.errors import UserError
from provscale.paper.experiments import FILE, experiment_of, inline, planned_config, read_experiments

EXPERIMENTS = read_experiments()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_is_a_valid_config_and_is_known_again(name: str) -> None:
    """Whatever seed, data and precision its runs have."""
    experiment = EXPERIMENTS[name]
    others = ["--seed", "7", "--data.root", "x", "--run.name", "y", "--train.precision", "bf16"]
    arms = [arm for arm in experiment.arms.values() if not arm.name.startswith("alpha-")]
    for arm in [*arms, *list(experiment.curve.values())[-2:-1]]:
        config = planned_config(experiment, arm, others).to_dict()
        found = [(one.name, of.name) for one in EXPERIMENTS.values() if (of := one.arm_of(config))]
        assert found == [(name, arm.name)]
        assert arm.against in experiment.arms


def test_a_run_of_no_arm() -> None:
    experiment = EXPERIMENTS["demo"]
    for changed in (["--guidance.alpha", "0.2"], ["--guidance.mask", "independent"], ["--model.name", "resnet18"]):
        assert experiment.arm_of(parse(["--cfg", "demo", *changed]).to_dict()) is None


def test_arms_by_name() -> None:
    experiment = EXPERIMENTS["demo"]
    assert [arm.name for arm in experiment.chosen(["random", "guided"])] == ["random", "guided"]
    assert [arm.name for arm in experiment.chosen(["guided", "alpha"])] == [
        "guided", "edits", "alpha-0.3", "alpha-3", "alpha-10",
    ]  # fmt: skip
    assert {alpha: arm.name for alpha, arm in experiment.curve.items()} == {
        0: "edits", 0.3: "alpha-0.3", 1: "guided", 3: "alpha-3", 10: "alpha-10",
    }  # fmt: skip
    assert len(experiment.chosen([])) == len(experiment.arms)
    with pytest.raises(
        UserError, match=r"--arm: demo has no arm 'randon', did you mean 'random'\?; it has: real, edits"
    ):
        experiment.chosen(["randon"])
    with pytest.raises(UserError, match="--experiment: is 'cub', must be one of: cub_vgg16, "):
        experiment_of("cub")


def test_a_baseline_of_other_length_is_no_point_of_the_curve() -> None:
    """Alpha 0 of the curve has the guided arm's 15 epochs, not the baseline's 50 (Table 9)."""
    experiment = EXPERIMENTS["cub_vgg16"]
    assert planned_config(experiment, experiment.curve[0.0]).train.epochs == 15
    assert planned_config(experiment, experiment.arms["baseline"]).train.epochs == 50


def test_broken_files(tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    for before, after, message in (
        (
            "    guided: {}",
            "    guided: {sat: {}}",
            "tasks.yaml: demo.arms.guided.sat is unknown, must be one of: again",
        ),
        ("  config: demo\n", "", "tasks.yaml: demo.config is missing"),
        ("value: 62.3", "valeu: 62.3", r"cub_vgg16.arms.baseline.paper.valeu is unknown, must be one of: best_epoch, "),
    ):
        content = FILE.read_text()
        assert before in content
        file.write_text(content.replace(before, after, 1))
        with pytest.raises(UserError, match=message):
            read_experiments(file)


def test_values_on_a_command_line() -> None:
    assert [inline(value) for value in (0, 0.03, None, True, {}, "none", 1.27e-5)] == [
        "0", "0.03", "null", "true", "{}", "none", "1.27e-05",
    ]  # fmt: skip
