"""Trains the arms of the demo's tasks on the embedded data and writes a report about each task, arms side by side.

python tools/demo.py                                          one seed: what `make demo` runs
python tools/demo.py --seeds 3 4 5 --doc docs/demo.md         three seeds and controls: the tables in docs/demo.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from provscale.errors import UserError, reported
from provscale.report import write_report

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "configs" / "demo_tasks.yaml"
LABELS = {
    "accuracy": "accuracy, %",
    "worst_group": "worst group, %",
    "maxboxacc": "MaxBoxAccV2, %",
    "maxboxacc/iou30": "box accuracy at IoU 0.3, %",
    "maxboxacc/iou50": "box accuracy at IoU 0.5, %",
    "maxboxacc/iou70": "box accuracy at IoU 0.7, %",
    "gradient_energy": "input-gradient energy outside the digit, %",
}
Runs = dict[str, list[Path]]


def train(task: str, arm: str, words: list[str], seed: int, folder: Path) -> Path:
    """Runs (or resumes) one arm; returns its run folder. Raises UserError when training fails."""
    name = "-".join(["demo", task, *arm.replace("+", " ").split(), f"seed{seed}"])
    command = [sys.executable, str(ROOT / "provscale" / "train.py"), *words]
    command += ["--seed", str(seed), "--run.dir", str(folder), "--run.name", name]
    print(f"[demo] {task}: {arm}, seed {seed}", flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"demo: training of {name} failed; its message is above")
    return folder / name


def train_task(name: str, task: dict[str, Any], seeds: list[int], controls: bool, folder: Path) -> Runs:
    """Run folders of each arm, in the order of the seeds."""
    config = ["--cfg", str(ROOT / "configs" / f"{task['config']}.yaml")]
    arms = {**task["arms"], **(task["controls"] if controls else {})}
    runs: Runs = {arm: [] for arm in arms}
    for seed in seeds:
        for arm, extra in arms.items():
            runs[arm].append(train(name, arm, [*config, *extra], seed, folder))
    return runs


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def table(runs: Runs, metrics: list[str]) -> str:
    """A Markdown table: of every metric and arm the last epoch's mean over seeds and each value; the best epoch."""
    lines = ["| | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for metric in metrics:
        cells = [values_text([summary(run)["final_metrics"][metric] for run in arm]) for arm in runs.values()]
        lines.append(f"| {LABELS[metric]} | " + " | ".join(cells) + " |")
    best = [", ".join(str(summary(run)["best_epoch"]) for run in arm) for arm in runs.values()]
    peak = [values_text([summary(run)["best_metrics"][metrics[0]] for run in arm]) for arm in runs.values()]
    seconds = [values_text([summary(run)["wall_seconds"] for run in arm], 0) for arm in runs.values()]
    lines.append("| best epoch | " + " | ".join(best) + " |")
    lines.append(f"| {LABELS[metrics[0]]}, in that epoch | " + " | ".join(peak) + " |")
    lines.append("| training and evaluation, s | " + " | ".join(seconds) + " |")
    return "\n".join(lines)


def values_text(values: list[float], digits: int = 1) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"**{statistics.mean(values):.{digits}f}** ({', '.join(f'{value:.{digits}f}' for value in values)})"


def update_document(path: Path, text: str, name: str = "measured") -> None:
    """Replaces what stands between the comments `<!-- NAME -->` and `<!-- /NAME -->` of a Markdown file."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    content = path.read_text()
    if begin not in content or end not in content:
        raise UserError(f"--doc: {path} has no lines '{begin}' and '{end}' to write the table between")
    before, after = content.split(begin)[0], content.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def run_demo(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    tasks: dict[str, Any] = yaml.safe_load(TASKS.read_text())
    reports = []
    for name, task in tasks.items():
        if arguments.task not in (None, name):
            continue
        runs = train_task(name, task, arguments.seeds, arguments.doc is not None, arguments.dir)
        report = arguments.dir / f"demo-{name}.html"
        write_report(report, [runs[arm][0] for arm in task["arms"]])
        text = table(runs, task["metrics"])
        if arguments.doc is not None:
            update_document(arguments.doc, text, f"measured {name}")
        reports.append(f"{name}, last epoch\n\n{text}\n\nOpen the report: {report.resolve()}")
    print("\n" + "\n\n".join(reports) + f"\n\n{time.monotonic() - started:.0f} s in all")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to train (default: 0)")
    parser.add_argument("--task", choices=["localisation", "edits"], help="one task only (default: both)")
    parser.add_argument("--doc", type=Path, help="Markdown file whose measured tables are replaced; adds the controls")
    arguments = parser.parse_args()
    return reported(lambda: run_demo(arguments))


if __name__ == "__main__":
    sys.exit(main())
