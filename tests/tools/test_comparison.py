"""The comparison of losses: its arms parse, an alpha is the best of those tried, tables hold what runs left."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from provscale.command_line import parse
from provscale.guidance.measures import MEASURES
from provscale.guidance.scores import SCORES
from tools import comparison
from tools.benchmark.arms import costs

TASKS = yaml.safe_load(comparison.TASKS.read_text())
TINY: dict[str, Any] = {
    "config": "demo",
    "options": [],
    "metrics": ["worst_group"],
    "arms": {"plain": [], "loss": ["--guidance.score", "centred"]},
    "alphas": {"loss": [1.0, 3.0]},
}


@pytest.mark.parametrize("name", TASKS)
def test_every_arm_parses_and_differs_in_guidance_alone(name: str) -> None:
    task = TASKS[name]
    tried = dict(comparison.exploratory_arms(task))
    assert len(tried) == 1 + sum(map(len, task["alphas"].values()))
    assert {comparison.baseline(task), *task["alphas"]} == {*task["arms"]}
    firsts = {arm: parse(tried[f"{arm} {alphas[0]:g}"]) for arm, alphas in task["alphas"].items()}
    plain = parse(tried[f"{comparison.baseline(task)} 0"]).to_dict()
    assert plain["guidance"]["alpha"] == 0
    for arm, config in firsts.items():
        assert {key for key, value in config.to_dict().items() if value != plain[key]} == {"guidance"}
        assert config.guidance.alpha == task["alphas"][arm][0]
        assert config.guidance.score in SCORES
        assert config.guidance.measure in MEASURES
    assert not {*task["seeds"]} & {*task["exploratory_seeds"]}


def finished(folder: Path, value: float) -> Path:
    folder.mkdir()
    rows = [{"kind": "validation", "worst_group": 1.0}, {"kind": "validation", "worst_group": value}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"test": {"last": {"worst_group": 100 - value}}}))
    return folder


def test_the_best_alpha_on_validation_is_chosen(tmp_path: Path) -> None:
    """Means over two seeds in the last epoch: 50; 65 at alpha 1, 70 at alpha 3."""
    values = {"plain 0": (40, 60), "loss 1": (60, 70), "loss 3": (50, 90)}
    runs = {name: [finished(tmp_path / f"{name}{number}", value) for number, value in enumerate(pair)]
            for name, pair in values.items()}  # fmt: skip
    found = comparison.explored_values(TINY, runs)
    assert comparison.chosen_alphas(found) == {"plain": 0.0, "loss": 3.0}
    assert comparison.chosen_alphas({"loss": {3.0: 7.0, 1.0: 7.0}}) == {"loss": 1.0}
    assert comparison.alpha_table(TINY, found).splitlines()[2:] == [
        "| plain | 0: 50.0 | 0 |",
        "| loss | 1: 65.0; 3: 70.0 | 3 |",
    ]


def test_the_table_has_the_test_metrics_and_the_costs(tmp_path: Path) -> None:
    """100 - 60 = 40 and 100 - 30 = 70, mean 55."""
    runs = {
        "plain 0": [finished(tmp_path / "plain", 50.0)],
        "loss 3": [finished(tmp_path / f"loss{value}", value) for value in (60.0, 30.0)],
    }
    cost = {"plain 0": (1.0, 100.4), "loss 3": (2.345, 200.6)}
    text = comparison.comparison_table(TINY, {"plain": 0.0, "loss": 3.0}, runs, cost)
    assert text.splitlines()[2:] == [
        "| plain | 0 | 50.0 | 1.00 | 100 |",
        "| loss | 3 | **55.0** (40.0, 70.0) | 2.35 | 201 |",
    ]


def test_a_whole_run_chooses_before_it_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With trainings that are made up: the fresh seeds are trained at the alpha that is best on the exploratory one."""
    asked = []

    def train_all(group: str, arms: list[Any], seeds: list[int], folder: Path, jobs: int) -> dict[str, list[Path]]:
        asked.append((group, [name for name, _ in arms], seeds))
        place = {name: number for number, (name, _) in enumerate(arms)}
        return {name: [finished(folder / f"{group} {name} {seed}", 10.0 * place[name]) for seed in seeds]
                for name, _ in arms}  # fmt: skip

    tasks = tmp_path / "tasks.yaml"
    tasks.write_text(yaml.safe_dump({"tiny": {**TINY, "exploratory_seeds": [1], "seeds": [2, 3]}}, sort_keys=False))
    doc = tmp_path / "page.md"
    doc.write_text(
        "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("measured tiny alphas", "measured tiny"))
    )
    monkeypatch.setattr(comparison, "TASKS", tasks)
    monkeypatch.setattr(comparison, "train_all", train_all)
    monkeypatch.setattr(comparison, "costs", lambda arms: dict.fromkeys(arms, (1.0, 2.0)))
    comparison.run(argparse.Namespace(dir=tmp_path, jobs=1, doc=doc))
    assert asked == [("tiny-alphas", ["plain 0", "loss 1", "loss 3"], [1]), ("tiny", ["plain 0", "loss 3"], [2, 3])]
    assert "| loss | 1: 10.0; 3: 20.0 | 3 |" in doc.read_text()
    assert "| loss | 3 | **90.0** (90.0, 90.0) | 1.00 | 2 |" in doc.read_text()


@pytest.mark.slow
def test_costs_of_two_arms() -> None:
    """The first arm's step costs one step of itself."""
    words = ["--data.name=digits", "--data.image_size=32", "--data.batch_size=4", "--model.name=test_resnet",
             "--data.options={train: 8, edits: 4, validation: 4, test: 4}", "--synthesis.name=edited"]  # fmt: skip
    arms = {"plain": words, "guided": [*words, "--guidance.alpha=1"]}
    found = costs(arms, rounds=1)
    assert found.keys() == arms.keys()
    assert found["plain"][0] == 1.0
    assert all(0 < ratio < float("inf") and memory > 0 for ratio, memory in found.values())
