"""What `make demo` trains exists and parses, and docs/demo.md holds its tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from provscale.command_line import parse
from provscale.errors import UserError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import demo  # noqa: E402

TASKS = yaml.safe_load((ROOT / "configs" / "demo_tasks.yaml").read_text())


@pytest.mark.parametrize("task", TASKS)
def test_every_arm_parses_and_arms_differ_in_guidance_or_synthesis_alone(task: str) -> None:
    config = ["--cfg", str(ROOT / "configs" / f"{TASKS[task]['config']}.yaml")]
    whole = parse(config).to_dict()
    for words in [*TASKS[task]["arms"].values(), *TASKS[task]["controls"].values()]:
        arm = parse([*config, *words]).to_dict()
        assert {key for key in whole if whole[key] != arm[key]} <= {"guidance", "synthesis"}
    assert set(TASKS[task]["metrics"]) <= set(demo.LABELS)


def test_table_has_mean_and_each_value(tmp_path: Path) -> None:
    """Means by hand: (1 + 2) / 2 and (10 + 30) / 2."""
    runs = []
    for number, (last, best) in enumerate([(1.0, 10.0), (2.0, 30.0)]):
        run = tmp_path / str(number)
        run.mkdir()
        content = {"final_metrics": {"accuracy": last}, "best_metrics": {"accuracy": best}, "best_epoch": number + 3}
        (run / "summary.json").write_text(json.dumps({**content, "wall_seconds": 7.2}))
        runs.append(run)
    lines = demo.table({"arm": runs}, ["accuracy"]).splitlines()
    assert lines[2] == "| accuracy, % | **1.5** (1.0, 2.0) |"
    assert lines[3] == "| best epoch | 3, 4 |"
    assert lines[4] == "| accuracy, %, in that epoch | **20.0** (10.0, 30.0) |"


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
