"""The tasks of the demo and of pages like it: trains their runs, each in its own process, and reads what they leave."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from provscale.command_line import parse
from provscale.errors import UserError
from provscale.run.frozen_config import read_frozen, refuse_changes
from provscale.tracking.metrics_file import read_metrics

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "configs" / "demo_tasks.yaml"
LABELS = {
    "accuracy": "accuracy, %",
    "worst_group": "worst group, %",
    "maxboxacc": "MaxBoxAccV2, %",
    "maxboxacc/iou30": "box accuracy at IoU 0.3, %",
    "maxboxacc/iou50": "box accuracy at IoU 0.5, %",
    "maxboxacc/iou70": "box accuracy at IoU 0.7, %",
    "gradient_energy": "input-gradient energy outside the object, %",
}
Arm = tuple[str, list[str]]
"""Name of an arm, and its command line."""


def runs_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a tool that trains runs; `--dir` and `--jobs` are for `train_all`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    return parser


def chosen_tasks(file: Path, name: str | None) -> dict[str, Any]:
    """The tasks of a file, or the one of that name. Raises UserError: no such file or task."""
    if not file.is_file():
        raise UserError(f"--tasks: {file} does not exist; see configs/demo_tasks.yaml")
    tasks: dict[str, Any] = yaml.safe_load(file.read_text())
    if name is None:
        return tasks
    if name not in tasks:
        raise UserError(f"--task: is '{name}', must be one of: {', '.join(tasks)} ({file})")
    return {name: tasks[name]}


def common_words(task: dict[str, Any]) -> list[str]:
    """The command line that a task's arms have in common."""
    return ["--cfg", str(ROOT / "configs" / f"{task['config']}.yaml"), *task.get("options", [])]


def train_all(task: str, arms: Sequence[Arm], seeds: Sequence[int], folder: Path, jobs: int) -> dict[str, list[Path]]:
    """Run folders of each arm, in the order of the seeds; `jobs` runs are trained at a time."""
    each = [(arm, words, seed) for seed in seeds for arm, words in arms]
    with ThreadPoolExecutor(jobs) as pool:
        folders = list(pool.map(lambda run: train(task, run[0], run[1], run[2], folder), each))
    runs: dict[str, list[Path]] = {arm: [] for arm, _ in arms}
    for (arm, _, _), path in zip(each, folders, strict=True):
        runs[arm].append(path)
    return runs


def train(task: str, arm: str, words: list[str], seed: int, folder: Path) -> Path:
    """Runs (or resumes) one arm; returns its run folder. Raises UserError: see `launch`."""
    started = time.monotonic()
    name = "-".join(["demo", task, *arm.replace("+", " ").split(), f"seed{seed}"])
    run = launch(name, [*words, "--seed", str(seed)], folder)
    print(f"[demo] {task}: {arm}, seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
    return run


def launch(name: str, words: list[str], folder: Path) -> Path:
    """Trains (or resumes) a run in one process of one thread; returns its folder, beside which its log is.

    A finished run is left as it is. Raises UserError when that was another training than the words ask for, and when
    training fails, after printing what the run said last.
    """
    run, log = folder / name, folder / f"{name}.log"
    command = [sys.executable, str(ROOT / "provscale" / "train.py"), *words]
    command += ["--run.dir", str(folder), "--run.name", name]
    if (run / "summary.json").exists():
        refuse_other_training(run, command[2:])
        return run
    spent = cpu_seconds(run)
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        # Not process.wait(): this one also says what the process has used, apart from those beside it.
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if run.is_dir():
        # The time of an interrupted run adds up.
        (run / "cpu_seconds").write_text(f"{spent + used.ru_utime + used.ru_stime:.2f}\n")
    if process.returncode:
        print("\n".join(log.read_text().splitlines()[-5:]), file=sys.stderr)
        raise UserError(f"training of {name} failed; its last lines are above, all of them in {log}")
    return run


def refuse_other_training(run: Path, words: list[str]) -> None:
    """Raises UserError where a finished run was started with another config than the command line says."""
    refuse_changes(read_frozen(run / "config.yaml"), parse(words).to_dict(), run)


def cpu_seconds(run: Path) -> float:
    """CPU time of a run's process so far, from start to end; NaN where it was not measured, 0 before it exists.

    A busy machine changes it less than wall time: through shared caches and clocks alone.
    """
    file = run / "cpu_seconds"
    if file.exists():
        return float(file.read_text())
    return float("nan") if run.is_dir() else 0.0


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def last_validation(run: Path, metric: str) -> float:
    """A metric on the validation split after the last epoch."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "validation"]
    return float(rows[-1][metric])


def values_text(values: Sequence[float], digits: int = 1) -> str:
    """The value, or **the mean** (and each value)."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"**{statistics.mean(values):.{digits}f}** ({', '.join(f'{value:.{digits}f}' for value in values)})"


def differences_text(first: Sequence[float], second: Sequence[float]) -> str:
    """Of `second` minus `first`, seed by seed: **the mean ± its standard error** (and each difference)."""
    values = [b - a for a, b in zip(first, second, strict=True)]
    if len(values) == 1:
        return f"{values[0]:+.1f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"**{statistics.mean(values):+.1f} ± {error:.1f}** ({', '.join(f'{value:+.1f}' for value in values)})"
