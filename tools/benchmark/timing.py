"""Times one training step of each kind in turns, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from provscale.guidance.step import PRECISIONS, GuidedStep
from provscale.sample import Sample
from tools.benchmark.cases import ALPHA, FLOOR, LOSSES, Case, build, make_sample, make_step
from tools.benchmark.engines import OUT_OF_MEMORY
from tools.benchmark.tables import Row, Timing


def step_arm(step: GuidedStep, sample: Sample, alpha: float) -> Callable[[], None]:
    """One training step up to the gradients, as the trainer runs it."""

    def run() -> None:
        step(sample, alpha=alpha)["loss"].backward()
        step.zero_grad(set_to_none=True)

    return run


def loss_arm(name: str, network: nn.Module, sample: Sample, dtype: torch.dtype | None) -> Callable[[], None]:
    """The same with one of `LOSSES`, and nothing of this package around it."""

    def run() -> None:
        LOSSES[name](network, sample, dtype).backward()
        network.zero_grad(set_to_none=True)

    return run


def measure(arms: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, Timing | str]:
    """Runs all arms in turns, `rounds` times after one uncounted round."""
    on_cuda = device.type == "cuda"
    clock = time.perf_counter if on_cuda else time.process_time
    seconds: dict[str, list[float] | str] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, run in arms.items():
            values = seconds[name]
            if isinstance(values, str):
                continue
            if on_cuda:
                torch.cuda.synchronize(device)
            started = clock()
            try:
                run()
            except torch.cuda.OutOfMemoryError:
                seconds[name] = OUT_OF_MEMORY
                torch.cuda.empty_cache()
                continue
            if on_cuda:
                torch.cuda.synchronize(device)
            if number:
                values.append(clock() - started)
    return {name: values if isinstance(values, str) else summarise(values) for name, values in seconds.items()}


def summarise(seconds: Sequence[float]) -> Timing:
    """Median and quartiles (minimum and maximum for fewer than four rounds), in milliseconds."""
    values = [1e3 * value for value in seconds]
    if len(values) < 4:
        return Timing(statistics.median(values), min(values), max(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(middle, low, high)


def make_row(
    case: Case, label: str, executor: str, precision: str, times: dict[str, Timing | str], engine: str = ""
) -> Row:
    """The times of one executor's arms, under the names that all executors share."""
    mine = {name.partition(",")[0]: value for name, value in times.items()}
    return Row(case.backbone, case.shape, label, engine, executor, precision, FLOOR[label], mine)


def step_row(case: Case, label: str, executor: str, precision: str, rounds: int, device: torch.device) -> Row:
    """The bare step under one executor; with it goes the memory of its recordings."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the recordings of the row before
    torch.manual_seed(0)
    network = build(case).to(device).train()
    sample = make_sample(case, label, device)
    arms = {name: loss_arm(name, network, sample, PRECISIONS[precision]) for name in LOSSES}
    step = make_step(network, label, precision, executor)
    arms[f"plain, {executor}"] = step_arm(step, sample, 0.0)
    arms[f"guided, {executor}"] = step_arm(step, sample, ALPHA)
    return make_row(case, label, executor, precision, measure(arms, rounds, device))
