"""Trains the arms of the demo's tasks on the embedded data and writes a report about each task, arms side by side.

python -m tools.demo                                          one seed: what `make demo` runs
python -m tools.demo --seeds 60 61 62 63 64 65 66 67 --doc docs/demo.md   eight seeds: the tables in docs/demo.md
python -m tools.demo --tasks configs/less_work_tasks.yaml --jobs 1 --seeds 3 4 5 --doc docs/benchmarks/README.md
                                                              what cheaper guidance does to accuracy
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from provscale.errors import reported
from provscale.files import markdown_table, update_document
from provscale.run.report import write_report
from tools import demo_curve
from tools.demo_runs import (
    LABELS,
    TASKS,
    chosen_tasks,
    common_words,
    cpu_seconds,
    differences_text,
    runs_parser,
    summary,
    train_all,
    values_text,
)

Runs = dict[str, list[Path]]


def table(runs: Runs, metrics: list[str], floor: list[float] | None = None, against: str | None = None) -> str:
    """A Markdown table: of every metric and arm the test metrics after the last epoch, mean over seeds and each value.

    Args:
        floor: arithmetic of a step of each arm; with it the table shows the runs' cost. None is for runs that are
            evaluated often: it shows the epoch that validation chose, and the first metric on test then.
        against: an arm, from which the others' first metric on test then is subtracted, seed by seed.
    """
    rows = [["", *runs]]

    def row(label: str, cells: Iterable[object]) -> None:
        rows.append([label, *map(str, cells)])

    for metric in metrics:
        row(
            LABELS[metric],
            [values_text([summary(run)["test"]["last"][metric] for run in arm]) for arm in runs.values()],
        )
    if floor is not None:
        row("CPU time of the whole run, s", [values_text(list(map(cpu_seconds, arm)), 0) for arm in runs.values()])
        row("arithmetic of a step at the floor, plain steps", floor)
        return markdown_table(rows)
    row(
        "best epoch on validation", [", ".join(str(summary(run)["best_epoch"]) for run in arm) for arm in runs.values()]
    )
    best = {arm: [summary(run)["test"]["best"][metrics[0]] for run in paths] for arm, paths in runs.items()}
    row(f"{LABELS[metrics[0]]}, with that epoch's weights", map(values_text, best.values()))
    if against is not None:
        row(
            f"the same, minus {against}",
            ["" if arm == against else differences_text(best[against], best[arm]) for arm in runs],
        )
    return markdown_table(rows)


def run_demo(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    tasks = chosen_tasks(arguments.tasks, arguments.task)
    reports = []
    for name, task in tasks.items():
        arms = [(arm, [*common_words(task), *words]) for arm, words in task["arms"].items()]
        runs = train_all(name, arms, arguments.seeds, arguments.dir, arguments.jobs)
        report = arguments.dir / f"demo-{name}.html"
        curve = demo_curve.section(demo_curve.read(demo_curve.data_file(task))) if demo_curve.measured(task) else ""
        write_report(report, [runs[arm][0] for arm in task["arms"]], curve)
        text = table(runs, task["metrics"], task.get("floor"), task.get("against"))
        if arguments.doc is not None:
            update_document(arguments.doc, text, f"measured {name}")
        reports.append(f"{name}, last epoch\n\n{text}\n\nOpen the report: {report.resolve()}")
    print("\n" + "\n\n".join(reports) + f"\n\n{time.monotonic() - started:.0f} s in all")


def main() -> int:
    parser = runs_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to train (default: 0)")
    parser.add_argument("--tasks", type=Path, default=TASKS, help="YAML of tasks and arms (default: the demo's)")
    parser.add_argument("--task", help="one task of that file only (default: all)")
    parser.add_argument("--doc", type=Path, help="Markdown file whose measured tables are replaced")
    arguments = parser.parse_args()
    return reported(lambda: run_demo(arguments))


if __name__ == "__main__":
    sys.exit(main())
