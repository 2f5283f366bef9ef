"""What a plan says: steps by hand from Table 8 and the data sets' sizes, states from folders, costs by formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from provscale.errors import UserError
from provscale.paper.experiments import experiment_of
from provscale.run.checkpoint_folder import PROGRESS
from tools import plan
from tools.benchmark.cases import FLOOR
from tools.plan import Costs, PlannedRun, StepCost
from tools.reproduce import experiment_runs


def planned(name: str, arm: str, folder: Path = Path("runs"), *words: str) -> PlannedRun:
    (run,) = experiment_runs(experiment_of(name), [arm], [0], folder, words)
    return run


@pytest.mark.parametrize(
    ("name", "arm", "words", "steps"),
    [
        ("cub_vgg16", "guided", (), 187 * 15),  # 5994 images in batches of 32, the last 10 left out
        ("cub_vgg16", "baseline", (), 187 * 50),
        ("waterbirds", "guided", (), 16 * 20),  # 1139 + 839 images in batches of 128; the last 58 make one
        ("waterbirds", "baseline", (), 9 * 20),  # without the edits
        ("demo", "guided", ("--train.max_steps", "7"), 7),
    ],
)
def test_steps(name: str, arm: str, words: tuple[str, ...], steps: int) -> None:
    assert planned(name, arm, Path("runs"), *words).total_steps == steps


@pytest.mark.parametrize(("name", "label"), [("demo", "hard"), ("demo_localisation", "soft")])
def test_flop_of_a_guided_step(name: str, label: str) -> None:
    """At the floor: twice a plain step with hard labels, three times with soft ones (docs/performance.md)."""
    costs = Costs()
    guided, plain = (
        costs.measured(planned(name, "guided", Path("runs"), "--data.batch_size", "4").config, guided=guided)
        for guided in (True, False)
    )
    assert guided.flop / plain.flop == pytest.approx(FLOOR[label], rel=0.03)
    assert guided.seconds > 0


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    """2 GFLOP/s; a plain step has 10 GFLOP and takes 4 s, a guided one 30 GFLOP and 9 s."""
    monkeypatch.setattr(
        Costs, "measured", lambda self, config, guided: StepCost(30e9, 9.0) if guided else StepCost(10e9, 4.0)
    )
    return Costs(peak=2.0)


def test_hours(costs: Costs) -> None:
    """Of 187 x 15 steps all are guided; with DeiT-S 79 % of them (Table 8); every 4th only, if asked."""
    assert costs.hours(planned("cub_vgg16", "guided")) == pytest.approx(
        (2805 * 30e9, 2805 * 15 / 3600, 2805 * 9 / 3600)
    )
    assert costs.hours(planned("cub_vgg16", "alpha-0")) == pytest.approx(
        (2805 * 10e9, 2805 * 5 / 3600, 2805 * 4 / 3600)
    )
    assert costs.step(planned("cub_deit_s", "guided").config).seconds == pytest.approx(0.79 * 9 + 0.21 * 4)
    every = planned("demo", "guided", Path("runs"), "--guidance.every", "4")
    assert costs.step(every.config).flop == pytest.approx(30e9 / 4 + 10e9 * 3 / 4)


def leave(run: PlannedRun, step: int, finished: bool = False, **changes: object) -> None:
    """What a training leaves that has come to a step; `changes` are of its config's top level."""
    saved = run.path / "checkpoints" / f"step-{step:08d}"
    saved.mkdir(parents=True)
    (saved / PROGRESS).write_text(json.dumps({"step": step}))
    (run.path / "config.yaml").write_text(yaml.safe_dump({**run.config.to_dict(), **changes}))
    if finished:
        (run.path / "summary.json").write_text("{}")


def test_what_is_done_and_what_resumes(tmp_path: Path, costs: Costs) -> None:
    """9 batches of 50 (460 images) in each of 20 epochs."""
    experiment = experiment_of("demo")
    runs = experiment_runs(experiment, ["guided", "edits"], [0, 1], tmp_path, [])
    assert [run.name for run in runs] == [
        "demo-guided-seed0",
        "demo-edits-seed0",
        "demo-guided-seed1",
        "demo-edits-seed1",
    ]
    leave(runs[0], 180, finished=True)
    leave(runs[1], 60)
    _, guided, edits, everything = plan.plan_table(runs, costs)
    assert guided == ["guided", "0 finished; 1 new", "180", "0.0054", "0.75", "0.45"]
    assert edits == ["edits", "0 resumes at 60 of 180; 1 new", "300", "0.003", "0.42", "0.33"]
    assert everything == ["all", "", "480", "0.0084", "1.2", "0.78"]
    assert "(2 GFLOP/s" not in plan.device_line(Costs())


def test_a_folder_of_another_training(tmp_path: Path, costs: Costs) -> None:
    run = planned("demo", "guided", tmp_path)
    leave(run, 60, seed=5)
    with pytest.raises(UserError, match=r"seed: is 0, but .*demo-guided-seed0 was started with 5"):
        plan.plan_table([run], costs)
    with pytest.raises(UserError, match="--seeds: demo-guided-seed0 is planned twice"):
        plan.refuse_duplicates([run, run])
