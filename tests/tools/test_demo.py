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
from tools import demo

TASKS = yaml.safe_load((ROOT / "configs" / "demo_tasks.yaml").read_text())
LESS_WORK = ROOT / "configs" / "less_work_tasks.yaml"
LESS_WORK_TASKS = yaml.safe_load(LESS_WORK.read_text())


def words_of(task: dict[str, Any]) -> list[str]:
    return ["--cfg", str(ROOT / "configs" / f"{task['config']}.yaml"), *task.get("options", [])]


@pytest.mark.parametrize("task", [*TASKS.values(), *LESS_WORK_TASKS.values()], ids=[*TASKS, *LESS_WORK_TASKS])
def test_every_arm_parses_and_arms_differ_in_guidance_or_synthesis_alone(task: dict[str, Any]) -> None:
    whole = parse(words_of(task)).to_dict()
    for words in [*task["arms"].values(), *task.get("controls", {}).values()]:
        arm = parse([*words_of(task), *words]).to_dict()
        assert {key for key in whole if whole[key] != arm[key]} <= {"guidance", "synthesis"}
    assert set(task["metrics"]) <= set(demo.LABELS)


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
    assert demo.chosen_tasks(LESS_WORK, None) == LESS_WORK_TASKS
    name = next(iter(LESS_WORK_TASKS))
    assert demo.chosen_tasks(LESS_WORK, name) == {name: LESS_WORK_TASKS[name]}
    with pytest.raises(UserError, match=f"--task: is 'x', must be one of: {', '.join(LESS_WORK_TASKS)}"):
        demo.chosen_tasks(LESS_WORK, "x")
    with pytest.raises(UserError, match=r"--tasks: .*none\.yaml does not exist"):
        demo.chosen_tasks(tmp_path / "none.yaml", None)


def test_table_has_mean_and_each_value(tmp_path: Path) -> None:
    """Means by hand: (1 + 2) / 2 and (10 + 30) / 2."""
    runs = []
    for number, (last, best) in enumerate([(1.0, 10.0), (2.0, 30.0)]):
        run = tmp_path / str(number)
        run.mkdir()
        content = {"test": {"last": {"accuracy": last}, "best": {"accuracy": best}}, "best_epoch": number + 3}
        (run / "summary.json").write_text(json.dumps({**content, "wall_seconds": 7.2}))
        runs.append(run)
    lines = demo.table({"arm": runs}, ["accuracy"]).splitlines()
    assert lines[2] == "| accuracy, % | **1.5** (1.0, 2.0) |"
    assert lines[3] == "| best epoch | 3, 4 |"
    assert lines[4] == "| accuracy, %, in that epoch | **20.0** (10.0, 30.0) |"


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
while time.process_time() < 0.3:
    pass
time.sleep(0.7)
if words["--seed"] == "0":
    sys.exit(1)
(run / "summary.json").touch()
"""


def test_cpu_time_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that computes 0.3 s and sleeps 0.7 s; interrupted runs add up, finished ones stay."""
    (tmp_path / "provscale").mkdir()
    (tmp_path / "provscale" / "train.py").write_text(BURN)
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    run = demo.train("task", "arm one", ["--more", "words"], 1, tmp_path)
    assert run == tmp_path / "demo-task-arm-one-seed1"
    first = demo.cpu_seconds(run)
    assert 0.3 <= first < 0.7
    demo.train("task", "arm one", ["--more", "words"], 1, tmp_path)
    assert demo.cpu_seconds(run) == first
    for times in (1, 2):
        with pytest.raises(UserError, match="training of demo-task-fails-seed0 failed"):
            demo.train("task", "fails", [], 0, tmp_path)
        assert 0.3 * times <= demo.cpu_seconds(tmp_path / "demo-task-fails-seed0") < 0.7 * times


def test_document_is_updated_between_its_comments_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured a -->\nold\n<!-- /measured a -->\nafter\n")
    demo.update_document(page, "new", "measured a")
    assert page.read_text() == "before\n<!-- measured a -->\nnew\n<!-- /measured a -->\nafter\n"
    with pytest.raises(UserError, match="measured b"):
        demo.update_document(page, "new", "measured b")


@pytest.mark.parametrize("task", TASKS)
def test_the_page_has_a_row_of_every_metric_for_three_seeds(task: str) -> None:
    page = (ROOT / "docs" / "demo.md").read_text()
    block = page.split(f"<!-- measured {task} -->")[1].split(f"<!-- /measured {task} -->")[0]
    for metric in TASKS[task]["metrics"]:
        (row,) = [line for line in block.splitlines() if line.startswith(f"| {demo.LABELS[metric]} |")]
        cells = row.split("|")[2:-1]
        assert len(cells) == len(TASKS[task]["arms"]) + len(TASKS[task]["controls"])
        assert all(cell.count(",") == 2 for cell in cells)


@pytest.mark.parametrize("task", LESS_WORK_TASKS)
def test_the_page_about_speed_has_a_row_of_every_metric_for_three_seeds(task: str) -> None:
    page = (ROOT / "docs" / "benchmarks" / "README.md").read_text()
    block = page.split(f"<!-- measured {task} -->")[1].split(f"<!-- /measured {task} -->")[0]
    for metric in LESS_WORK_TASKS[task]["metrics"]:
        (row,) = [line for line in block.splitlines() if line.startswith(f"| {demo.LABELS[metric]} |")]
        assert [cell.count(",") for cell in row.split("|")[2:-1]] == [2] * len(LESS_WORK_TASKS[task]["arms"])
