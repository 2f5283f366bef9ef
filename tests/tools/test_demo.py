"""What `make demo` and `make less-work-seeds` train exists and parses, and docs/demo.md holds the demo's tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

from provscale.command_line import parse
from provscale.errors import UserError
from tools import demo, demo_curve, demo_runs

TASKS = yaml.safe_load((ROOT / "configs" / "demo_tasks.yaml").read_text())
LESS_WORK = ROOT / "configs" / "less_work_tasks.yaml"
LESS_WORK_TASKS = yaml.safe_load(LESS_WORK.read_text())
BIRDS_TASKS = yaml.safe_load((ROOT / "configs" / "birds_tasks.yaml").read_text())


words_of = demo_runs.common_words


@pytest.mark.parametrize("task", [*TASKS.values(), *LESS_WORK_TASKS.values()], ids=[*TASKS, *LESS_WORK_TASKS])
def test_every_arm_parses_and_arms_differ_in_guidance_or_synthesis_alone(task: dict[str, Any]) -> None:
    whole = parse(words_of(task)).to_dict()
    for words in task["arms"].values():
        arm = parse([*words_of(task), *words]).to_dict()
        assert {key for key in whole if whole[key] != arm[key]} <= {"guidance", "synthesis"}
    assert set(task["metrics"]) <= set(demo_runs.LABELS)


@pytest.mark.parametrize("task", BIRDS_TASKS.values(), ids=list(BIRDS_TASKS))
def test_arms_with_birds_parse_and_differ_in_guidance_synthesis_or_the_root_alone(task: dict[str, Any]) -> None:
    """The root's table of edits names the true masks, or does not."""
    whole = parse(words_of(task)).to_dict()
    for words in task["arms"].values():
        arm = parse([*words_of(task), *words]).to_dict()
        assert {key for key in whole if whole[key] != arm[key]} <= {"guidance", "synthesis", "data"}
        assert {**whole["data"], "root": ""} == {**arm["data"], "root": ""}
    assert {task["against"]} <= set(task["arms"])
    assert set(task["metrics"]) <= set(demo_runs.LABELS)


@pytest.mark.parametrize("name", LESS_WORK_TASKS)
def test_floor_of_every_arm(name: str) -> None:
    """Counted in forward passes F: 3 plain; a guided sample 3 more for each input gradient (docs/performance.md)."""
    task = LESS_WORK_TASKS[name]
    for words, floor in zip(task["arms"].values(), task["floor"], strict=True):
        config = parse([*words_of(task), *words])
        guidance, counts = config.guidance, config.data.options
        terms = 2 if config.synthesis.name == "cutmix" and guidance.sampled_term == "none" else 1
        share = counts["edits"] / (counts["train"] + counts["edits"]) if guidance.split_batch else 1
        passes = 3 + (3 * terms * share / guidance.every if guidance.alpha else 0)
        assert floor == pytest.approx(passes / 3, abs=0.005)


def test_tasks_are_chosen_by_file_and_name(tmp_path: Path) -> None:
    assert demo_runs.chosen_tasks(LESS_WORK, None) == LESS_WORK_TASKS
    name = next(iter(LESS_WORK_TASKS))
    assert demo_runs.chosen_tasks(LESS_WORK, name) == {name: LESS_WORK_TASKS[name]}
    with pytest.raises(UserError, match=f"--task: is 'x', must be one of: {', '.join(LESS_WORK_TASKS)}"):
        demo_runs.chosen_tasks(LESS_WORK, "x")
    with pytest.raises(UserError, match=r"--tasks: .*none\.yaml does not exist"):
        demo_runs.chosen_tasks(tmp_path / "none.yaml", None)


def test_table_has_mean_and_each_value(tmp_path: Path) -> None:
    """By hand: (1 + 2) / 2, (10 + 30) / 2; differences 20 and -20 have standard deviation 20 * sqrt(2)."""
    runs = []
    for number, (last, best) in enumerate([(1.0, 10.0), (2.0, 30.0)]):
        run = tmp_path / str(number)
        run.mkdir()
        content = {"test": {"last": {"accuracy": last}, "best": {"accuracy": best}}, "best_epoch": number + 3}
        (run / "summary.json").write_text(json.dumps({**content, "wall_seconds": 7.2}))
        runs.append(run)
    lines = demo.table({"arm": runs, "other": runs[::-1]}, ["accuracy"], against="arm").splitlines()
    assert lines[2] == "| accuracy, % | **1.5** (1.0, 2.0) | **1.5** (2.0, 1.0) |"
    assert lines[3] == "| best epoch on validation | 3, 4 | 4, 3 |"
    assert lines[4] == "| accuracy, %, with that epoch's weights | **20.0** (10.0, 30.0) | **20.0** (30.0, 10.0) |"
    assert lines[5] == "| the same, minus arm |  | **+0.0 ± 20.0** (+20.0, -20.0) |"


def test_differences_are_paired() -> None:
    """By hand: differences 1, 3 and 5, standard deviation 2, divided by the root of three."""
    assert demo_runs.differences_text([1.0, 2.0, 3.0], [2.0, 5.0, 8.0]) == "**+3.0 ± 1.2** (+1.0, +3.0, +5.0)"
    assert demo_runs.differences_text([4.0], [3.0]) == "-1.0"


def test_table_of_costs(tmp_path: Path) -> None:
    """Of two arms; the second's time was not measured."""
    runs = {"plain": [tmp_path / "plain"], "guided": [tmp_path / "guided"]}
    for (run,) in runs.values():
        run.mkdir()
        (run / "summary.json").write_text(json.dumps({"test": {"last": {"accuracy": 50.0}}}))
    (tmp_path / "plain" / "cpu_seconds").write_text("12.34\n")
    assert demo.table(runs, ["accuracy"], [1.0, 1.17]).splitlines()[2:] == [
        "| accuracy, % | 50.0 | 50.0 |",
        "| CPU time of the whole run, s | 12 | nan |",
        "| arithmetic of a step at the floor, plain steps | 1.0 | 1.17 |",
    ]


BURN = """
import sys, time
from pathlib import Path
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run = Path(words["--run.dir"]) / words["--run.name"]
run.mkdir(exist_ok=True)
print("what went wrong")
while time.process_time() < 0.3:
    pass
time.sleep(0.7)
if words["--seed"] == "0":
    sys.exit(1)
(run / "summary.json").touch()
"""


@pytest.fixture
def burning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every training computes 0.3 s and sleeps 0.7 s; with seed 0 it fails."""
    (tmp_path / "provscale").mkdir()
    (tmp_path / "provscale" / "train.py").write_text(BURN)
    monkeypatch.setattr(demo_runs, "ROOT", tmp_path)
    monkeypatch.setattr(demo_runs, "refuse_other_training", lambda run, words: None)  # these have no config
    return tmp_path


def test_cpu_time_of_a_run(burning: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted runs add up, finished ones stay."""
    run = demo_runs.train("task", "arm one", ["--more", "words"], 1, burning)
    assert run == burning / "demo-task-arm-one-seed1"
    first = demo_runs.cpu_seconds(run)
    assert 0.3 <= first < 0.7
    demo_runs.train("task", "arm one", ["--more", "words"], 1, burning)
    assert demo_runs.cpu_seconds(run) == first
    for times in (1, 2):
        with pytest.raises(UserError, match="training of demo-task-fails-seed0 failed"):
            demo_runs.train("task", "fails", [], 0, burning)
        assert 0.3 * times <= demo_runs.cpu_seconds(burning / "demo-task-fails-seed0") < 0.7 * times
        assert "what went wrong" in capsys.readouterr().err


def test_a_finished_run_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor taken for one that was asked for with other words."""
    monkeypatch.setattr(demo_runs, "ROOT", tmp_path)  # without a train.py, so that every start would fail
    (tmp_path / "name").mkdir()
    words = ["--synthesis.name", "cutmix", "--guidance.alpha", "0.5"]
    named = parse([*words, "--run.dir", str(tmp_path), "--run.name", "name"])
    (tmp_path / "name" / "config.yaml").write_text(yaml.safe_dump(named.to_dict()))
    (tmp_path / "name" / "summary.json").touch()
    assert demo_runs.launch("name", words, tmp_path) == tmp_path / "name"
    with pytest.raises(UserError, match=r"is 0\.25, but"):
        demo_runs.launch("name", [*words[:3], "0.25"], tmp_path)


def test_runs_beside_each_other_are_kept_apart(burning: Path) -> None:
    """Two at a time: folders in the order of the seeds, and each run's own CPU time."""
    arms = [("a", ["--more", "words"]), ("b", ["--more", "others"])]
    runs = demo_runs.train_all("task", arms, [2, 1], burning, jobs=2)
    assert runs == {arm: [burning / f"demo-task-{arm}-seed{seed}" for seed in (2, 1)] for arm in ("a", "b")}
    assert all(0.3 <= demo_runs.cpu_seconds(run) < 0.7 for arm in runs.values() for run in arm)


CURVES: dict[str, Any] = {
    "seeds": [0, 1],
    "network": "plain_cnn",
    "metric": "worst_group",
    "baseline": "edits",
    "without": [50.0, 60.0],
    "provenance": {"0.1": [51.0, 61.0], "3": [71.0, 81.0]},
    "random": {"0.1": [52.0, 62.0], "3": [42.0, 52.0]},
    "none": {"0.1": [53.0, 63.0], "3": [13.0, 23.0]},
}


def test_the_curve_shows_means_and_every_seed() -> None:
    axis = demo_curve.draw(CURVES).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines["right mask"] == [[0.1, 56.0], [3.0, 76.0]]
    assert lines["no mask"] == [[0.1, 58.0], [3.0, 18.0]]
    assert {value for _, value in lines["edits (alpha 0)"]} == {55.0}
    points = [xy for line in axis.lines if str(line.get_label()).startswith("_") for xy in line.get_xydata().tolist()]
    assert sorted(points) == sorted(
        [float(alpha), value] for mask in demo_curve.STYLES for alpha, seeds in CURVES[mask].items() for value in seeds
    )


def test_table_of_the_curve() -> None:
    assert demo_curve.table(CURVES).splitlines()[2:] == [
        "| 0 (edits) | **55.0** (50.0, 60.0) | **55.0** (50.0, 60.0) | **55.0** (50.0, 60.0) |",
        "| 0.1 | **56.0** (51.0, 61.0) | **57.0** (52.0, 62.0) | **58.0** (53.0, 63.0) |",
        "| 3 | **76.0** (71.0, 81.0) | **47.0** (42.0, 52.0) | **18.0** (13.0, 23.0) |",
    ]


def test_the_curve_is_read_from_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last validation row counts, not the best, and no row of the test split."""

    def trained(
        task: str, arms: list[demo_runs.Arm], seeds: list[int], folder: Path, jobs: int
    ) -> dict[str, list[Path]]:
        runs = {}
        for number, (arm, words) in enumerate(arms):
            parse(words)
            runs[arm] = [tmp_path / f"{arm} {seed}" for seed in seeds]
            for seed, run in zip(seeds, runs[arm], strict=True):
                run.mkdir()
                rows = [("train", 0), ("validation", 99), ("validation", 10 * number + seed), ("test", 77)]
                text = [json.dumps({"kind": kind, "accuracy": value}) + "\n" for kind, value in rows]
                (run / "metrics.jsonl").write_text("".join(text))
                (run / "config.yaml").write_text(parse(words).to_yaml())
        return runs

    monkeypatch.setattr(demo_curve, "train_all", trained)
    task = {"config": "demo", "metrics": ["accuracy"], "curve": {"baseline": "plain", "alphas": [0.5, 2]}}
    assert demo_curve.measure("x", task, [4, 5], tmp_path, 1) == {
        "seeds": [4, 5],
        "network": "plain_cnn",
        "metric": "accuracy",
        "baseline": "plain",
        "without": [4, 5],
        "provenance": {"0.5": [14, 15], "2": [24, 25]},
        "random": {"0.5": [34, 35], "2": [44, 45]},
        "none": {"0.5": [54, 55], "2": [64, 65]},
    }


def test_document_is_updated_between_its_comments_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured a -->\nold\n<!-- /measured a -->\nafter\n")
    demo.update_document(page, "new", "measured a")
    assert page.read_text() == "before\n<!-- measured a -->\nnew\n<!-- /measured a -->\nafter\n"
    with pytest.raises(UserError, match="measured b"):
        demo.update_document(page, "new", "measured b")


@pytest.mark.parametrize("task", TASKS)
def test_the_page_has_a_row_of_every_metric_for_several_seeds(task: str) -> None:
    page = (ROOT / "docs" / "demo.md").read_text()
    block = page.split(f"<!-- measured {task} -->")[1].split(f"<!-- /measured {task} -->")[0]
    for metric in TASKS[task]["metrics"]:
        (row,) = [line for line in block.splitlines() if line.startswith(f"| {demo_runs.LABELS[metric]} |")]
        cells = row.split("|")[2:-1]
        seeds = {cell.count(",") + 1 for cell in cells}
        assert len(cells) == len(TASKS[task]["arms"])
        assert len(seeds) == 1
        assert min(seeds) >= 3


@pytest.mark.parametrize("task", LESS_WORK_TASKS)
def test_the_page_about_speed_has_a_row_of_every_metric_for_three_seeds(task: str) -> None:
    page = (ROOT / "docs" / "benchmarks" / "README.md").read_text()
    block = page.split(f"<!-- measured {task} -->")[1].split(f"<!-- /measured {task} -->")[0]
    for metric in LESS_WORK_TASKS[task]["metrics"]:
        (row,) = [line for line in block.splitlines() if line.startswith(f"| {demo_runs.LABELS[metric]} |")]
        assert [cell.count(",") for cell in row.split("|")[2:-1]] == [2] * len(LESS_WORK_TASKS[task]["arms"])
