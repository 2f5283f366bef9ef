"""What is to be trained: which runs have finished, where others resume, and what the rest will cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from provscale.build import build_network
from provscale.command_line import parse
from provscale.config import Config
from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.run.checkpoint_folder import newest_first, read_progress
from provscale.run.frozen_config import read_frozen, refuse_changes
from provscale.synthesis import SYNTHESES
from tools.benchmark.cases import CLASSES, Case, make_sample
from tools.benchmark.roofline import GIGA, measure_machine, measure_step

FEW, ENOUGH = 2, 5e10
"""On a CPU, where a whole batch may take minutes, a step is measured with so few samples, or with so many that it has
enough FLOP to be measured by; both grow with the batch."""


@dataclass(frozen=True)
class PlannedRun:
    """One training.

    Attributes:
        label: arm of an experiment, or point of a sweep.
        name: run.name.
        words: its command line, but for run.dir and run.name.
        folder: run.dir.
        items: training samples.
    """

    label: str
    seed: int
    name: str
    words: list[str]
    folder: Path
    items: int

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @cached_property
    def config(self) -> Config:
        """Raises UserError: see `parse`."""
        return parse([*self.words, "--run.dir", str(self.folder), "--run.name", self.name])

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").exists()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        data, train = self.config.data, self.config.train
        batches = self.items / data.batch_size
        steps = (math.floor(batches) if data.drop_last else math.ceil(batches)) * train.epochs
        return steps if train.max_steps is None else min(steps, train.max_steps)

    @property
    def step(self) -> int:
        """Where training goes on: the step of the newest checkpoint; 0 without one."""
        if self.finished:
            return self.total_steps
        saved = newest_first(self.path / "checkpoints")
        return read_progress(saved[0]).step if saved else 0

    @property
    def state(self) -> str:
        if self.finished:
            return "finished"
        return f"resumes at {self.step} of {self.total_steps}" if self.step else "new"

    def check(self) -> None:
        """Raises UserError: its folder holds another training."""
        if self.finished or self.step:
            refuse_changes(read_frozen(self.path / "config.yaml"), self.config.to_dict(), self.path)


@dataclass(frozen=True)
class StepCost:
    """FLOP of a training step of a whole batch, and its seconds on this machine."""

    flop: float
    seconds: float


class Costs:
    """What steps cost on this machine; each kind of step is measured once.

    Args:
        peak: GFLOP/s to compute the least time with; None: those of a large matrix product here.
    """

    def __init__(self, peak: float | None = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.peaks: dict[str, float] = {}
        self.peak = peak
        self.steps: dict[str, StepCost] = {}

    def step(self, config: Config) -> StepCost:
        """The mean step: some are guided only now and then, because of mixing probability and `guidance.every`."""
        if not config.guidance.alpha:
            return self.measured(config, guided=False)
        synthesis, share = SYNTHESES[config.synthesis.name], 1 / config.guidance.every
        if getattr(synthesis, "pairs", False):
            share *= config.synthesis.probability
        guided, plain = self.measured(config, guided=True), self.measured(config, guided=False)
        return StepCost(*(share * a + (1 - share) * b for a, b in zip(astuple(guided), astuple(plain), strict=True)))

    def measured(self, config: Config, guided: bool) -> StepCost:
        soft = getattr(SYNTHESES[config.synthesis.name], "pairs", False)
        options = replace(config.guidance, executor="eager", alpha=1.0, every=1, mask="provenance", dilation=0.0)
        data = config.data
        kind = str([config.model, data.batch_size, data.image_size, config.train.precision, guided, soft and guided,
                    options if guided else ""])  # fmt: skip
        if kind not in self.steps:
            torch.manual_seed(0)
            model = replace(config.model, pretrained="none")
            network = build_network(replace(config, model=model), CLASSES).network.to(self.device).train()
            step = GuidedStep(network, precision=config.train.precision, **asdict(options))
            size = data.options.get("frames", data.image_size)

            def measure(samples: int) -> StepCost:
                sample = make_sample(Case(config.model.name, samples, size), "soft" if soft else "hard", self.device)
                flop, _, seconds = measure_step(step, sample, float(guided), 1, self.device)
                return StepCost(flop * data.batch_size / samples, seconds * data.batch_size / samples)

            few = data.batch_size if self.device.type == "cuda" else min(FEW, data.batch_size)
            cost = measure(few)
            samples = min(data.batch_size, int(ENOUGH / cost.flop * data.batch_size))
            self.steps[kind] = measure(samples) if samples > few else cost
        return self.steps[kind]

    def hours(self, run: PlannedRun) -> tuple[float, float, float]:
        """FLOP of the steps that are left, least hours by arithmetic, and hours by the measured step."""
        left = run.total_steps - run.step
        if not left:
            return 0.0, 0.0, 0.0
        cost, precision = self.step(run.config), run.config.train.precision
        if precision not in self.peaks:
            self.peaks[precision] = self.peak or measure_machine(self.device, [precision])[precision]
        flop = left * cost.flop
        return flop, flop / (self.peaks[precision] * GIGA) / 3600, left * cost.seconds / 3600


def astuple(cost: StepCost) -> tuple[float, float]:
    return cost.flop, cost.seconds


def plan_table(runs: Sequence[PlannedRun], costs: Costs) -> list[list[str]]:
    """Header and a row for each label and for the sum: the runs' states, steps left, FLOP and device hours.

    Raises UserError: see `PlannedRun.check`.
    """
    table = [["run", "seeds", "steps left", "PFLOP", "hours at the least", "hours, measured step"]]
    total = [0.0] * 4
    for label in dict.fromkeys(run.label for run in runs):
        here = [run for run in runs if run.label == label]
        for run in here:
            run.check()
        states: dict[str, list[str]] = {}
        for run in here:
            states.setdefault(run.state, []).append(str(run.seed))
        values = [float(sum(run.total_steps - run.step for run in here)), 0.0, 0.0, 0.0]
        for run in here:
            values[1:] = [sum(pair) for pair in zip(values[1:], costs.hours(run), strict=True)]
        total = [sum(pair) for pair in zip(total, values, strict=True)]
        seeds = "; ".join(f"{', '.join(numbers)} {state}" for state, numbers in states.items())
        table.append([label, seeds, *shown(values)])
    return [*table, ["all", "", *shown(total)]]


def shown(values: Sequence[float]) -> list[str]:
    steps, flop, *hours = values
    return [f"{steps:.0f}", *(f"{x:.0f}" if x >= 100 else f"{x:.2g}" for x in (flop / 1e15, *hours))]


def device_line(costs: Costs) -> str:
    """What the hours of a plan are of."""
    cpu = f"CPU, threads: {torch.get_num_threads()}"
    device = torch.cuda.get_device_name() if costs.device.type == "cuda" else cpu
    peaks = [f"{peak:.0f} GFLOP/s" + f" in {name}" * (name != "no") for name, peak in costs.peaks.items()]
    given = "given" if costs.peak else "of a large matrix product"
    reached = ", ".join([*peaks, given])
    return (
        f"Device hours of the training steps alone: at the least by arithmetic ({reached}), and by a "
        f"step measured here ({device}). Loading, evaluation and start-up come on top."
    )


def refuse_duplicates(runs: Sequence[PlannedRun]) -> None:
    """Raises UserError: a seed was given twice."""
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--seeds: {name} is planned twice; give each seed once")
