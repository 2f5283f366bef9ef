"""The experiments of configs/reproduce_tasks.yaml: arms, what each changes in the config, and the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from provscale.command_line import parse
from provscale.config import Config
from provscale.errors import UserError
from provscale.registry import nearest
from provscale.run.frozen_config import flatten
from provscale.shipped import shipped
from provscale.strict_yaml import load_yaml

FILE = shipped("configs/reproduce_tasks.yaml")
ALPHA = "guidance.alpha"
NO_TABLE = "Not in the paper's tables"


@dataclass(frozen=True)
class Figures:
    """What the paper reports of an arm; None: nothing.

    Attributes:
        value: of the experiment's first metric, in percent.
        best_epoch: the epoch at which validation peaks.
        epoch_seconds, hours: wall time of an epoch, and of the whole training.
    """

    value: float | None = None
    best_epoch: float | None = None
    epoch_seconds: float | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Arm:
    """One arm of an experiment.

    Attributes:
        name: as on the command line and in run folders.
        settings: the config's keys that it changes.
        against: the arm that it is compared with.
        table: where the paper has its figures.
        train_items: training samples, with edits.
    """

    name: str
    settings: dict[str, Any]
    against: str
    train_items: int
    table: str = NO_TABLE
    paper: Figures = field(default_factory=Figures)


@dataclass(frozen=True)
class Experiment:
    """A config and its arms.

    Attributes:
        metrics: the first is the one that the paper reports.
        alphas: of the curve; empty: there is none.
    """

    name: str
    title: str
    config: str
    metrics: tuple[str, ...]
    arms: dict[str, Arm]
    alphas: tuple[float, ...]

    def words(self, arm: Arm) -> list[str]:
        """The command line that trains an arm, but for its name, seed and data."""
        changes = [f"--{key}={inline(value)}" for key, value in arm.settings.items()]
        return [*self.config_words, *changes]

    @property
    def config_words(self) -> list[str]:
        return ["--cfg", str(shipped(f"configs/{self.config}.yaml"))]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The config of the experiment, dotted; as it is where an arm changes nothing."""
        return flatten(parse(self.config_words).to_dict())

    def arm_of(self, config: dict[str, Any]) -> Arm | None:
        """The arm that a run's config is of: the one that has the same data set, network, and values of all keys that
        some arm changes. Other keys, such as the precision, do not matter (`report` names them)."""
        mine = flatten(config)
        if any(mine.get(key) != self.defaults[key] for key in ("data.name", "model.name")):
            return None
        keys = {key for arm in self.arms.values() for key in arm.settings if not key.endswith(".options")}
        for arm in self.arms.values():
            expected = {key: arm.settings.get(key, self.defaults.get(key)) for key in keys}
            if all(mine.get(key) == value for key, value in expected.items()):
                return arm
        return None

    def chosen(self, names: Sequence[str]) -> list[Arm]:
        """The named arms (`alpha`: those of the curve), or all. Raises UserError: there is no arm of that name."""
        found: dict[str, Arm] = {}
        for name in names or self.arms:
            if name == "alpha" and self.alphas:
                found |= {arm.name: arm for arm in self.curve.values()}
            elif name in self.arms:
                found[name] = self.arms[name]
            else:
                every = [*self.arms, *["alpha"] * bool(self.alphas)]
                raise UserError(f"--arm: {self.name} has no arm '{name}'{nearest(name, every) or ''}; it has: "
                                f"{', '.join(every)}")  # fmt: skip
        return list(found.values())

    @cached_property
    def curve(self) -> dict[float, Arm]:
        """The arms that differ in alpha alone, by alpha."""
        found = {}
        for alpha in self.alphas:
            settings = {} if alpha == self.defaults[ALPHA] else {ALPHA: alpha}
            found[alpha] = next(arm for arm in self.arms.values() if arm.settings == settings)
        return found


def inline(value: Any) -> str:
    """A value as one word of YAML."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).removesuffix("...\n").strip()


@cache
def read_experiments(file: Path = FILE) -> dict[str, Experiment]:
    """All experiments of a file. Raises UserError: a key that is unknown or missing."""
    return {name: build(file, name, content) for name, content in load_yaml(file.read_text()).items()}


def build(file: Path, name: str, content: dict[str, Any]) -> Experiment:
    def checked(given: dict[str, Any], allowed: set[str], required: set[str], where: str) -> dict[str, Any]:
        for key in given.keys() ^ (given.keys() & allowed | required):
            kind = "is missing" if key in required else f"is unknown, must be one of: {', '.join(sorted(allowed))}"
            raise UserError(f"{file.name}: {where}.{key} {kind}")
        return given

    top = {"title", "config", "metrics", "train_items", "against", "arms"}
    checked(content, {*top, "alphas"}, top, name)
    arms = {}
    for arm, given in content["arms"].items():
        where = f"{name}.arms.{arm}"
        checked(given, {"set", "against", "table", "paper", "train_items"}, set(), where)
        paper = checked(given.get("paper", {}), {entry.name for entry in fields(Figures)}, set(), f"{where}.paper")
        arms[arm] = Arm(
            arm, given.get("set", {}), given.get("against", content["against"]),
            given.get("train_items", content["train_items"]), given.get("table", NO_TABLE), Figures(**paper),
        )  # fmt: skip
    alphas = tuple(float(alpha) for alpha in content.get("alphas", []))
    experiment = Experiment(name, content["title"], content["config"], tuple(content["metrics"]), arms, alphas)
    for alpha in alphas:
        settings = {} if alpha == experiment.defaults[ALPHA] else {ALPHA: alpha}
        if all(arm.settings != settings for arm in arms.values()):
            arms[f"alpha-{alpha:g}"] = Arm(f"alpha-{alpha:g}", settings, content["against"], content["train_items"])
    return experiment


def experiment_of(name: str, file: Path = FILE) -> Experiment:
    """Raises UserError: there is no experiment of that name."""
    found = read_experiments(file)
    if name not in found:
        raise UserError(f"--experiment: is '{name}', must be one of: {', '.join(found)} ({file})")
    return found[name]


def planned_config(experiment: Experiment, arm: Arm, words: Sequence[str] = ()) -> Config:
    """The whole config of an arm. Raises UserError: see `parse`."""
    return parse([*experiment.words(arm), *words])
