"""The paper's Tables 9 and 10, and its other figures, from finished runs: Markdown, CSV and LaTeX.

Accuracy is that on test with the weights of the best epoch, which validation chose. Deviations are those of a sample
(n - 1). Times are wall times of training with its evaluations on validation.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from provscale.errors import UserError
from provscale.files import markdown_table
from provscale.paper.experiments import NO_TABLE, Arm, Experiment, planned_config
from provscale.run.arms import differences, value_text
from provscale.run.finished_run import FinishedRun

Grid = list[list[str]]
"""Text: the header, then the rows."""
MISSING, NOTHING = "missing", "-"


@dataclass(frozen=True)
class Result:
    """An arm and its finished runs, one of each seed, in the order of the seeds; none: the arm is missing."""

    experiment: Experiment
    arm: Arm
    runs: tuple[FinishedRun, ...]

    @property
    def seeds(self) -> list[int]:
        return [int(run.config["seed"]) for run in self.runs]

    def values(self, metric: str) -> list[float]:
        """Of each seed, on test with the weights of the best epoch; empty where a run lacks a further metric.

        Raises UserError: a run lacks the experiment's first metric.
        """
        found = []
        for run in self.runs:
            best, _ = run.results("test")
            if metric not in best and metric != self.experiment.metrics[0]:
                return []
            if metric not in best:
                raise UserError(f"{run.name}: has no {metric} on test, which {self.experiment.name} is measured by; it "
                                f"has: {', '.join(best) or 'nothing'}")  # fmt: skip
            found.append(float(best[metric]))
        return found

    @property
    def best_epochs(self) -> list[float]:
        return [run.best_epoch for run in self.runs]

    @property
    def epoch_seconds(self) -> list[float]:
        return [run.summary["wall_seconds"] / run.last_epoch for run in self.runs]

    @property
    def hours(self) -> list[float]:
        return [run.summary["wall_seconds"] / 3600 for run in self.runs]


Results = dict[str, dict[str, Result]]
"""By experiment and arm, arms that are missing too."""


def gather(runs: Iterable[FinishedRun], experiments: Iterable[Experiment]) -> tuple[Results, list[str]]:
    """The results of all experiments that a run is of, and the names of runs that are of none.

    Raises UserError: two runs are of the same arm and seed.
    """
    found: dict[tuple[str, str], list[FinishedRun]] = {}
    others, experiments = [], list(experiments)
    for run in runs:
        places = [(one.name, arm.name) for one in experiments if (arm := one.arm_of(run.config))]
        for place in places:
            found.setdefault(place, []).append(run)
        others += [run.name] * (not places)
    results: Results = {}
    for one in experiments:
        if any(name == one.name for name, _ in found):
            results[one.name] = {arm.name: result(one, arm, found.get((one.name, arm.name), []))
                                 for arm in one.arms.values()}  # fmt: skip
    return results, others


def result(experiment: Experiment, arm: Arm, runs: Sequence[FinishedRun]) -> Result:
    by_seed: dict[int, FinishedRun] = {}
    for run in runs:
        other = by_seed.setdefault(int(run.config["seed"]), run)
        if other is not run:
            raise UserError(f"{other.name} and {run.name}: are both {experiment.name}'s arm {arm.name} with seed "
                            f"{run.config['seed']}; give one of them")  # fmt: skip
    return Result(experiment, arm, tuple(by_seed[seed] for seed in sorted(by_seed)))


# ---- numbers ---------------------------------------------------------------------------------------------------------
def records(results: Results) -> list[dict[str, Any]]:
    """Rows of the CSV: one for every arm and metric, unrounded; what there is not is None.

    The paper's figures stand beside the first metric of an experiment.
    """
    return [
        record(arms, one, metric)
        for arms in results.values()
        for one in arms.values()
        for metric in one.experiment.metrics
    ]


def record(arms: dict[str, Result], one: Result, metric: str) -> dict[str, Any]:
    paper, against = one.arm.paper, arms[one.arm.against]
    values, epochs, below = one.values(metric), one.best_epochs, against.best_epochs
    value = paper.value if metric == one.experiment.metrics[0] else None
    saved = minus(mean(below), mean(epochs)) if against is not one else None
    paper_saved = minus(against.arm.paper.best_epoch, paper.best_epoch) if against is not one else None
    return {
        "table": one.arm.table, "experiment": one.experiment.name, "arm": one.arm.name,
        "seeds": one.seeds, "metric": metric, "values": values,
        "mean": mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "paper": value, "difference": minus(mean(values), value),
        "best_epoch": mean(epochs), "paper_best_epoch": paper.best_epoch,
        "epochs_saved": saved, "paper_epochs_saved": paper_saved,
        "epoch_seconds": mean(one.epoch_seconds), "paper_epoch_seconds": paper.epoch_seconds,
        "hours": mean(one.hours), "paper_hours": paper.hours,
        "selected_on": list(dict.fromkeys(run.selected_on for run in one.runs)),
    }  # fmt: skip


def mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


# ---- tables ----------------------------------------------------------------------------------------------------------
HEADER = ["experiment", "arm", "seeds", "metric", "mean ± deviation (each)", "paper", "difference", "best epoch",
          "paper", "epochs saved", "paper", "s per epoch", "paper", "hours", "paper"]  # fmt: skip


def tables(results: Results) -> dict[str, Grid]:
    """By the paper's table: a row of each arm, with the first metric; and the further metrics of the arms there are."""
    found: dict[str, Grid] = {}
    for row in sorted(records(results), key=lambda row: (row["table"] == NO_TABLE, row["table"] == "Main text")):
        experiment = results[row["experiment"]][row["arm"]].experiment
        if row["metric"] == experiment.metrics[0]:
            found.setdefault(row["table"], [HEADER]).append(cells(row))
    for name, arms in results.items():
        there = [one for one in arms.values() if one.runs]
        more = there[0].experiment.metrics[1:]
        if more:
            grid = [["arm", *more]]
            grid += [[one.arm.name, *(spread(one.values(metric)) for metric in more)] for one in there]
            found[f"Further metrics: {there[0].experiment.title} ({name})"] = grid
    return found


def cells(row: dict[str, Any]) -> list[str]:
    mark = " (best epoch chosen on test)" if "test" in row["selected_on"] else ""
    return [
        row["experiment"], row["arm"], ", ".join(map(str, row["seeds"])) or NOTHING, row["metric"],
        spread(row["values"]) + mark if row["values"] else MISSING,
        number(row["paper"]), number(row["difference"], "+.1f"),
        number(row["best_epoch"], "g"), number(row["paper_best_epoch"], "g"),
        number(row["epochs_saved"], "g"), number(row["paper_epochs_saved"], "g"),
        number(row["epoch_seconds"], ".3g"), number(row["paper_epoch_seconds"], "g"),
        number(row["hours"], ".2g"), number(row["paper_hours"], "g"),
    ]  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """Mean, deviation and each value; a single value alone."""
    if len(values) < 2:
        return number(mean(values))
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({each})"


def number(value: float | None, form: str = ".1f") -> str:
    return NOTHING if value is None else f"{round(value, 2) if form == 'g' else value:{form}}"


def notes(results: Results) -> list[str]:
    """What else of a run's config differs from its arm's: such a run is not quite what the table says."""
    found = []
    for arms in results.values():
        for one in arms.values():
            for run in one.runs:
                planned = planned_config(one.experiment, one.arm).to_dict() | {"seed": run.config["seed"]}
                changed = differences([planned, run.config])
                if changed:
                    text = ", ".join(f"{key} {value_text(now)} instead of {value_text(before)}"
                                     for key, (before, now) in changed.items())  # fmt: skip
                    found.append(f"{run.name} ({one.experiment.name}, {one.arm.name}): {text}")
    return found


# ---- formats ---------------------------------------------------------------------------------------------------------
def markdown(grid: Grid) -> str:
    return markdown_table(grid, rule=["---"] * len(grid[0]))


def latex(title: str, grid: Grid) -> str:
    """A table for a document with the packages booktabs and graphicx."""
    head, *rows = [[escaped(cell) for cell in row] for row in grid]
    body = "".join(f"{' & '.join(row)} \\\\\n" for row in rows)
    return (
        f"\\begin{{table}}\n\\caption{{{escaped(title)}}}\n\\resizebox{{\\linewidth}}{{!}}{{%\n"
        f"\\begin{{tabular}}{{{'l' * len(head)}}}\n\\toprule\n{' & '.join(head)} \\\\\n\\midrule\n{body}"
        "\\bottomrule\n\\end{tabular}}\n\\end{table}\n"
    )


def escaped(cell: str) -> str:
    for character in "&%$#_{}":
        cell = cell.replace(character, f"\\{character}")
    return cell.replace("±", "$\\pm$")


def comma_separated(results: Results) -> str:
    rows = records(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        lists = {key: " ".join(map(str, value)) for key, value in row.items() if isinstance(value, list)}
        writer.writerow(row | lists)
    return text.getvalue()


def markdown_document(results: Results, remarks: Sequence[str]) -> str:
    parts = [f"### {title}\n\n{markdown(grid)}\n" for title, grid in tables(results).items()]
    return "\n".join([*parts, *(f"- {remark}" for remark in remarks)]).rstrip() + "\n"


def latex_document(results: Results) -> str:
    return "\n".join(latex(title, grid) for title, grid in tables(results).items())
