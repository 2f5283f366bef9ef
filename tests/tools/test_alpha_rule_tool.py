"""What the table of rule and fixed alphas says about its values."""

from __future__ import annotations

import pytest
import yaml

from tools.alpha_rule import RULE, TASKS, arms_of, main, outcome


def test_the_rules_share_of_the_gain_of_the_best_fixed_alpha() -> None:
    assert outcome({"0": [50.0, 60.0], "0.1": [60.0, 70.0], "1": [50.0, 40.0], RULE: [55.0, 70.0]}) == ("0.1", "75 %")


def test_no_share_where_no_fixed_alpha_gains() -> None:
    assert outcome({"0": [50.0], "0.1": [40.0], "1": [50.0], RULE: [70.0]}) == ("1", "-")


def test_arms_differ_in_alpha_alone() -> None:
    plans = yaml.safe_load(TASKS.read_text())["plans"]
    arms = arms_of(plans["alpha rule"]["alphas"], plans["alpha rule"]["ratio"])
    assert list(arms) == ["0", "0.01", "0.1", "1", "10", RULE]
    assert arms["0.1"] == ["--guidance.alpha", "0.1"]
    assert arms[RULE] == ["--guidance.alpha_rule", "gradient_ratio", "--guidance.alpha", "0.2"]


@pytest.mark.parametrize("task", ["signs", "CutMix"])
def test_at_least_three_networks_for_each_task(task: str) -> None:
    assert len(yaml.safe_load(TASKS.read_text())["tasks"][task]["networks"]) >= 3


def test_no_plan_has_a_seed_of_another() -> None:
    """The second was chosen on the first; and runs are named by their seed."""
    seeds = [seed for plan in yaml.safe_load(TASKS.read_text())["plans"].values() for seed in plan["seeds"]]
    assert len(seeds) == len(set(seeds))


def test_an_unknown_plan_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["alpha_rule", "--plan", "none"])
    assert main() == 2
    assert "--plan: is 'none', must be one of: alpha rule, alpha rule, smaller ratio" in capsys.readouterr().err
