"""Trains the losses of the paper's peers beside the paper's and ours on the demo's edited images: docs/comparison.md.

python -m tools.comparison --doc docs/comparison.md   alphas on the exploratory seeds, then four fresh seeds, and costs
python -m tools.comparison --dir runs --jobs 1        the same, printed only; finished runs are not trained again

What is trained is in configs/comparison_tasks.yaml. Each arm's alpha is chosen on validation, and written down before
the test split is read, once, at that alpha.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

from provscale.errors import reported
from provscale.files import markdown_table, update_document
from tools.benchmark.arms import costs
from tools.demo_runs import (
    LABELS,
    ROOT,
    Arm,
    common_words,
    last_validation,
    runs_parser,
    summary,
    train_all,
    values_text,
)

TASKS = ROOT / "configs" / "comparison_tasks.yaml"
Runs = dict[str, list[Path]]
Task = dict[str, Any]


def baseline(task: Task) -> str:
    """The first arm, which is trained without guidance."""
    return str(next(iter(task["arms"])))


def words_of(task: Task, name: str, alpha: float) -> list[str]:
    return [*common_words(task), *task["arms"][name], "--guidance.alpha", str(alpha)]


def exploratory_arms(task: Task) -> list[Arm]:
    """The baseline, and every other arm at each of its alphas."""
    tried = [(name, alpha) for name, alphas in task["alphas"].items() for alpha in alphas]
    return [(f"{name} {alpha:g}", words_of(task, name, alpha)) for name, alpha in [(baseline(task), 0.0), *tried]]


Found = dict[str, dict[float, float]]
"""By arm and alpha: mean over the exploratory seeds of the first metric on validation, after the last epoch."""


def explored_values(task: Task, runs: Runs) -> Found:
    def value(name: str, alpha: float) -> float:
        return statistics.mean(last_validation(run, task["metrics"][0]) for run in runs[f"{name} {alpha:g}"])

    alphas = {baseline(task): [0.0], **task["alphas"]}
    return {name: {alpha: value(name, alpha) for alpha in tried} for name, tried in alphas.items()}


def chosen_alphas(found: Found) -> dict[str, float]:
    """The alpha with the highest value of each arm, the lowest of equals."""
    return {name: max(sorted(values), key=lambda alpha: values[alpha]) for name, values in found.items()}


def alpha_table(task: Task, found: Found) -> str:
    label = LABELS[task["metrics"][0]].replace("%", "% on validation")
    rows = [["loss", f"alpha: {label}", "chosen"]]
    for name, alpha in chosen_alphas(found).items():
        rows.append([name, "; ".join(f"{tried:g}: {value:.1f}" for tried, value in found[name].items()), f"{alpha:g}"])
    return markdown_table(rows)


def comparison_table(task: Task, chosen: dict[str, float], runs: Runs, cost: dict[str, tuple[float, float]]) -> str:
    """Test metrics after the last epoch, mean over seeds and each value; cost and memory of a step.

    Args:
        runs, cost: by `NAME ALPHA`.
    """
    metrics = task["metrics"]
    rows = [["loss", "alpha", *(LABELS[name] for name in metrics), "step's time, plain steps", "step's memory, MiB"]]
    for name, alpha in chosen.items():
        arm = f"{name} {alpha:g}"
        tested = [summary(run)["test"]["last"] for run in runs[arm]]
        figures = [values_text([found[metric] for found in tested]) for metric in metrics]
        rows.append([name, f"{alpha:g}", *figures, f"{cost[arm][0]:.2f}", f"{cost[arm][1]:.0f}"])
    return markdown_table(rows)


def run(arguments: argparse.Namespace) -> None:
    tasks: dict[str, Task] = yaml.safe_load(TASKS.read_text())
    for name, task in tasks.items():

        def keep(text: str, marker: str) -> None:
            print(f"\n{text}\n", flush=True)
            if arguments.doc is not None:
                update_document(arguments.doc, text, marker)

        def train(group: str, arms: list[Arm], seeds: list[int]) -> Runs:
            return train_all(group, arms, seeds, arguments.dir, arguments.jobs)

        found = explored_values(task, train(f"{name}-alphas", exploratory_arms(task), task["exploratory_seeds"]))
        chosen = chosen_alphas(found)
        keep(alpha_table(task, found), f"measured {name} alphas")  # before anything is read on test
        arms = [(f"{arm} {alpha:g}", words_of(task, arm, alpha)) for arm, alpha in chosen.items()]
        runs = train(name, arms, task["seeds"])
        keep(comparison_table(task, chosen, runs, costs(dict(arms))), f"measured {name}")


def main() -> int:
    parser = runs_parser(__doc__)
    parser.add_argument("--doc", type=Path, help="Markdown file whose measured tables are replaced")
    return reported(lambda: run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
