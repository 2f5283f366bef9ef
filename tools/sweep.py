"""A W&B sweep file without W&B: the same grid in the same order, and the best of its runs by validation."""

from __future__ import annotations

import itertools
import os
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from provscale.errors import UserError
from provscale.paper.experiments import inline
from provscale.run.arms import value_text
from provscale.run.finished_run import FinishedRun
from provscale.strict_yaml import load_yaml

Point = dict[str, Any]
"""The value of each key of a run."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        content: as in the file.
        words: the command line of every run: what stands between `${program}` and `${args}`.
        points: the grid, keys in alphabetical order and the last varying fastest, as W&B's server goes through it.
        metric: on the split that chooses the best epoch.
        sign: 1 where more is better, else -1.
    """

    path: Path
    content: dict[str, Any]
    words: list[str]
    points: list[Point]
    metric: str
    sign: int

    @property
    def name(self) -> str:
        return str(self.content["name"])

    @property
    def keys(self) -> list[str]:
        """The keys that take several values; the others are the same in all runs."""
        return [key for key, given in sorted(self.content["parameters"].items()) if len(given.get("values", ())) > 1]

    def label(self, point: Point) -> str:
        """A point's name, for its run folder: the keys that vary, but for the seed."""
        return "-".join(f"{key.rsplit('.', 1)[-1]}{value_text(point[key])}" for key in self.keys if key != "seed")


def read_sweep(path: Path) -> Sweep:
    """Raises UserError: no sweep file, no grid, or a variable of its command is not set."""
    try:
        content = load_yaml(path.read_text())
        program, command = content["program"], list(content["command"])
        words = [expanded(path, word) for word in command[command.index("${program}") + 1 : command.index("${args}")]]
        kind, _, metric = content["metric"]["name"].partition("/")
        sign = {"maximize": 1, "minimize": -1}[content["metric"]["goal"]]
        parameters = {name: given.get("values", [given.get("value")]) for name, given in content["parameters"].items()}
    except UserError:
        raise
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--sweep: {path} is no sweep file ({type(error).__name__}: {str(error)[:120]}); see "
                        "configs/sweeps/") from None  # fmt: skip
    if content["method"] != "grid" or program != "provscale/train.py" or kind != "validation":
        found = f"method {content['method']}, program {program} and metric {kind}/{metric}"
        raise UserError(f"--sweep: {path} has {found}; without W&B these must be grid, provscale/train.py and "
                        "validation/...")  # fmt: skip
    # How it is tracked is W&B's business.
    names = sorted(name for name in parameters if not name.startswith("tracking."))
    points = [dict(zip(names, values, strict=True)) for values in itertools.product(*(parameters[n] for n in names))]
    return Sweep(path, content, words, points, metric, sign)


def expanded(path: Path, word: str) -> str:
    """W&B's `${envvar:NAME}`. Raises UserError: the variable is not set."""
    named = re.fullmatch(r"\$\{envvar:(\w+)\}", word)
    if named is None:
        return word
    if named[1] not in os.environ:
        raise UserError(f"--sweep: {path} needs the variable {named[1]}; export {named[1]}=...")
    return os.environ[named[1]]


def point_words(sweep: Sweep, point: Point) -> list[str]:
    return [*sweep.words, *(f"--{key}={inline(value)}" for key, value in point.items())]


def values_of(sweep: Sweep, runs: Mapping[str, list[FinishedRun]]) -> dict[str, list[float]]:
    """The metric of each run on the split that chose its best epoch, in that epoch, by the point's label."""
    found: dict[str, list[float]] = {}
    for label, here in runs.items():
        rows = [run.results(run.selected_on)[0] for run in here]
        for run, row in zip(here, rows, strict=True):
            if sweep.metric not in row:
                raise UserError(f"--sweep: {run.name} has no {sweep.metric}; metric.name in {sweep.path} must be one "
                                f"of: {', '.join(run.metric_names())}")  # fmt: skip
        found[label] = [float(row[sweep.metric]) for row in rows]
    return found


def best_point(sweep: Sweep, values: Mapping[str, list[float]]) -> Point | None:
    """The point with the best mean over its seeds, without seed; the first of equal ones; None: nothing has
    finished."""
    means = {label: sweep.sign * statistics.mean(here) for label, here in values.items() if here}
    if not means:
        return None
    best = max(means, key=lambda label: means[label])
    (*_, point) = (point for point in sweep.points if sweep.label(point) == best)
    return {key: point[key] for key in sweep.keys if key != "seed"}


def at_the_edge(sweep: Sweep, point: Point) -> list[str]:
    """Keys whose best value is the smallest or the largest of the grid, so that a better one may lie outside."""
    values = {key: sweep.content["parameters"][key]["values"] for key in point}
    return [key for key, value in point.items() if value in (min(values[key]), max(values[key]))]


def fine_stage(sweep: Sweep, point: Point) -> str | None:
    """The fine stage around the best point of a coarse one, as a sweep file; None: the file is no coarse stage.

    NAME_fine.yaml beside NAME_coarse.yaml says the steps: each key's values are scaled so that the middle one is the
    best.
    """
    partner = sweep.path.with_name(sweep.path.name.replace("_coarse", "_fine"))
    if partner == sweep.path or not partner.exists():
        return None
    content = load_yaml(partner.read_text())
    for key, best in point.items():
        values = content["parameters"][key]["values"]
        middle = values[len(values) // 2]
        content["parameters"][key]["values"] = [float(f"{best * value / middle:.3g}") for value in values]
    return str(yaml.safe_dump(content, sort_keys=False))
