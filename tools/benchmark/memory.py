"""Peak memory of a step, and the largest batch that fits into a given amount, each measured in a process of its own.

What counts is all the process takes for network, gradients and one step, without an optimizer: on a CPU its resident
memory, on CUDA what PyTorch's allocator has reserved (recorded graphs keep their memory there).
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from provscale.errors import UserError
from provscale.guidance.step import PRECISIONS
from provscale.sample import Sample
from provscale.second_derivatives.recompute import recompute_activations
from tools.benchmark.budget import Budget
from tools.benchmark.cases import LOSSES, Case, build, make_sample, make_step

MIB = 2**20
RUNS = 2
"""Steps in a process; the last one's peak counts, when libraries have allocated their workspaces."""
MMAP_THRESHOLD = -3  # of glibc's mallopt: larger blocks go back to the system as soon as they are freed


@dataclass(frozen=True)
class MemoryRow:
    """Attributes:
    peak: MiB of one step at the case's batch; None where it does not run (see `problem`).
    largest: the largest batch found to fit into `budget` MiB, or None.
    too_large: the smallest batch found not to fit.
    """

    backbone: str
    batch: int
    size: int
    label: str
    arm: str
    precision: str
    peak: float | None
    budget: float
    largest: int | None
    too_large: int | None
    problem: str = ""


def arms_of(executors: Sequence[str]) -> list[str]:
    guided = [f"guided, {name}" for name in executors]
    return ["plain eager", "by hand", *guided, "guided, one term", "guided, recomputed"]


def make_arm(arm: str, network: nn.Module, sample: Sample, precision: str) -> Callable[[], None]:
    """A function that runs one step up to the gradients, which stay."""
    if arm in LOSSES:
        return lambda: LOSSES[arm](network, sample, PRECISIONS[precision]).backward()
    variant = arm.partition(", ")[2]
    if variant == "recomputed":
        recompute_activations(network)
    executor = "eager" if variant in ("recomputed", "one term") else variant
    step = make_step(network, "soft, one term" if variant == "one term" else "soft", precision, executor)
    return lambda: step(sample)["loss"].backward()


def peak_of(case: Case, label: str, arm: str, precision: str, device_name: str) -> float | str:
    """MiB of the running process, or why there is no figure. To be called in a fresh process."""
    torch.set_num_threads(1)
    device = torch.device(device_name)

    def make() -> Callable[[], None]:
        torch.manual_seed(0)
        network = build(case).to(device).train()
        step = make_arm(arm, network, make_sample(case, label, device), precision)

        def run() -> None:
            network.zero_grad(set_to_none=True)
            step()

        return run

    try:
        return peak_of_run(make, device)
    except UserError as error:
        return str(error)
    except torch.cuda.OutOfMemoryError:
        return float("inf")


def peak_of_run(make: Callable[[], Callable[[], None]], device: torch.device) -> float:
    """MiB that the running process takes for what `make` builds and for running it. To be called in a fresh process."""
    on_cuda = device.type == "cuda"
    if not on_cuda and sys.platform == "linux":
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 65536)
    before = 0.0 if on_cuda else resident("VmRSS")
    run = make()
    for _ in range(RUNS):
        gc.collect()
        forget_peak(on_cuda)
        run()
    return torch.cuda.max_memory_reserved(device) / MIB if on_cuda else resident("VmHWM") - before


def forget_peak(on_cuda: bool) -> None:
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def resident(key: str) -> float:
    """MiB of `VmRSS` (now) or `VmHWM` (peak) of this process; Linux only."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measured(*arguments: Any) -> float | str:
    """`peak_of` in a process of its own."""
    context = multiprocessing.get_context("spawn" if arguments[-1].startswith("cuda") else "forkserver")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["tools.benchmark.memory"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_of, *arguments).result()


def largest_batch(peak: Callable[[int], float], batch: int, at_batch: float, budget: float) -> tuple[int, int]:
    """The largest batch found to fit and the smallest found not to, at most 10 % (or one sample) apart.

    Memory is nearly affine in the batch, so each trial is where the line through the last two points meets the budget.

    Args:
        peak: measures a batch, MiB.
        batch: a batch already measured, and its peak `at_batch`.
    """
    points = {batch: at_batch, 2 * batch: peak(2 * batch)}
    while True:
        fitting = [size for size, value in points.items() if value <= budget]
        failing = [size for size, value in points.items() if value > budget]
        low, high = max(fitting, default=0), min(failing, default=None)
        if high is not None and high - low <= max(1, low // 10):
            return low, high
        finite = sorted(size for size, value in points.items() if value < float("inf"))[-2:]
        guess = 2 * low
        if len(finite) == 2 and points[finite[1]] > points[finite[0]]:
            slope = (points[finite[1]] - points[finite[0]]) / (finite[1] - finite[0])
            guess = int(finite[1] + (budget - points[finite[1]]) / slope)
        if guess in points or guess <= low or (high is not None and guess >= high):
            # The line points at what is known: try just beside it.
            step = max(1, low // 10)
            guess = low + step if high is None else max(low + 1, min(low + step, (low + high) // 2))
        points[guess] = peak(guess)


def memory_rows(
    case: Case,
    label: str,
    precision: str,
    executors: Sequence[str],
    device: torch.device,
    limit: float,
    budget: Budget,
) -> list[MemoryRow]:
    """One row for each arm for which there is time; `limit` in MiB."""
    rows = []
    for arm in arms_of(executors):
        if arm == "guided, one term" and label == "hard":
            continue
        name = f"memory: {case.backbone}, {label}, {precision}, {arm}"
        row = budget.take(name, memory_row, case, label, arm, precision, str(device), limit)
        rows += [] if row is None else [row]
    return rows


def memory_row(case: Case, label: str, arm: str, precision: str, device: str, limit: float) -> MemoryRow:
    """The peak at the case's batch, and the largest batch that `limit` MiB hold."""

    def peak(batch: int) -> float:
        value = measured(replace(case, batch=batch), label, arm, precision, device)
        return float("inf") if isinstance(value, str) else value

    first = measured(case, label, arm, precision, device)
    known = (case.backbone, case.batch, case.size, label, arm, precision)
    if isinstance(first, str):
        return MemoryRow(*known, None, limit, None, None, first)
    return MemoryRow(*known, first, limit, *largest_batch(peak, case.batch, first, limit))


def memory_table(rows: Sequence[MemoryRow]) -> list[list[str]]:
    """A line for each backbone and kind of label, a column for each arm: peak in MiB, and the largest batch."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    table = [["backbone", "labels", *(f"{arm}: MiB; largest batch" for arm in arms)]]
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        shape = Case(row.backbone, row.batch, row.size).shape
        name = f"{row.backbone}, {shape}" + ("" if row.precision == "no" else f", {row.precision}")
        figure = "-" if row.peak is None else f"{row.peak:.0f}; {row.largest}"
        groups.setdefault((name, row.label), {})[row.arm] = figure
    return table + [[*key, *(found.get(arm, "-") for arm in arms)] for key, found in groups.items()]
