"""The roofline: how near a step comes to what the machine's arithmetic and memory allow.

A step does so many floating-point operations (FLOP) on so many bytes; their ratio is its arithmetic intensity. A
machine does at most `peak` operations a second and moves at most `bandwidth` bytes a second, so a step of intensity I
reaches at most min(peak, I x bandwidth) (Williams, Waterman and Patterson, "Roofline", CACM 2009). Both are measured.

FLOP are those of convolutions and matrix products, by PyTorch's formulas (torch.utils.flop_counter). Bytes are what
each operation reads and writes, one by one: a cache, or a compiler that fuses operations, moves fewer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from provscale.guidance.step import PRECISIONS, GuidedStep
from provscale.sample import Sample
from tools.benchmark.cases import ALPHA, Case, build, make_sample, make_step

GIGA = 1e9
FREE = frozenset({
    "view", "_unsafe_view", "_reshape_alias", "expand", "t", "transpose", "permute", "slice", "select", "unbind",
    "split", "split_with_sizes", "diagonal", "squeeze", "unsqueeze", "as_strided", "detach", "alias", "empty",
    "empty_like", "empty_strided", "new_empty",
})  # fmt: skip
"""Operations that move nothing."""


@dataclass(frozen=True)
class Point:
    """One kind of step. FLOP and bytes are of one step; `seconds` is the fastest of the rounds."""

    backbone: str
    shape: str
    label: str
    precision: str
    kind: str
    flop: int
    moved: int
    seconds: float

    @property
    def intensity(self) -> float:
        return self.flop / self.moved

    @property
    def rate(self) -> float:
        """GFLOP/s."""
        return self.flop / self.seconds / GIGA


class Work(TorchDispatchMode):
    """Counts the FLOP of every operation inside, and the bytes of its inputs and outputs.

    PyTorch's own counter watches modules by hooks on the graph, which do not stand a second derivative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        if operation in flop_registry:
            self.flop += flop_registry[operation](*args, **(kwargs or {}), out_val=result)
        if operation.__name__ not in FREE:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor))
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def seconds_of(function: Callable[[], object], rounds: int, device: torch.device) -> float:
    """The fastest of some runs after one uncounted; a limit is what the machine can do, not what it often does."""
    on_cuda = device.type == "cuda"
    clock = time.perf_counter if on_cuda else time.process_time
    best = float("inf")
    for number in range(rounds + 1):
        if on_cuda:
            torch.cuda.synchronize(device)
        started = clock()
        function()
        if on_cuda:
            torch.cuda.synchronize(device)
        if number:
            best = min(best, clock() - started)
    return best


def measure_machine(device: torch.device, precisions: Sequence[str]) -> dict[str, float]:
    """GFLOP/s of a large matrix product in each precision, and GB/s of a large copy."""
    on_cuda = device.type == "cuda"
    size = 8192 if on_cuda else 2048
    found = {}
    product = torch.get_float32_matmul_precision()
    # A limit of convolutions too, and these round to TF32 on a GPU unless they are told not to.
    torch.set_float32_matmul_precision("high" if on_cuda and torch.backends.cudnn.allow_tf32 else product)
    for precision in precisions:
        matrix = torch.randn(size, size, device=device, dtype=PRECISIONS[precision] or torch.float32)
        found[precision] = 2 * size**3 / seconds_of(partial(torch.mm, matrix, matrix), 5, device) / GIGA
    torch.set_float32_matmul_precision(product)
    source = torch.zeros((1 << 30 if on_cuda else 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    found["GB/s"] = 2 * 4 * source.numel() / seconds_of(lambda: target.copy_(source), 5, device) / GIGA
    return found


def measure_step(
    step: GuidedStep, sample: Sample, alpha: float, rounds: int, device: torch.device
) -> tuple[int, int, float]:
    """FLOP and bytes of one step with its gradients, and the seconds of the fastest of some rounds."""

    def run() -> None:
        step.zero_grad(set_to_none=True)
        step(sample, alpha=alpha)["loss"].backward()

    run()
    with Work() as work:
        run()
    return work.flop, work.moved, seconds_of(run, rounds, device)


def roofline_points(case: Case, label: str, precision: str, rounds: int, device: torch.device) -> list[Point]:
    """The plain and the guided step of one case."""
    torch.manual_seed(0)
    step = make_step(build(case).to(device).train(), label, precision, "eager")
    sample = make_sample(case, label, device)
    points = []
    for kind, alpha in (("plain", 0.0), ("guided", ALPHA)):
        flop, moved, seconds = measure_step(step, sample, alpha, rounds, device)
        points.append(Point(case.backbone, case.shape, label, precision, kind, flop, moved, seconds))
    return points


def limit(point: Point, machine: dict[str, float]) -> float:
    """GFLOP/s the roof allows at the point's intensity."""
    return min(machine[point.precision], point.intensity * machine["GB/s"])


def roofline_table(points: Sequence[Point], machine: dict[str, float]) -> list[list[str]]:
    table = [["backbone", "batch", "labels", "step", "GFLOP", "GFLOP, guided / plain", "GB", "FLOP / byte", "GFLOP/s",
              "of the roof"]]  # fmt: skip
    plain = {(point.backbone, point.label, point.precision): point for point in points if point.kind == "plain"}
    for point in points:
        below = plain[point.backbone, point.label, point.precision]
        table.append([
            point.backbone, point.shape, point.label,
            point.kind if point.precision == "no" else f"{point.kind}, {point.precision}",
            f"{point.flop / GIGA:.2f}", "-" if point is below else f"{point.flop / below.flop:.2f}",
            f"{point.moved / GIGA:.2f}", f"{point.intensity:.1f}", f"{point.rate:.1f}",
            f"{point.rate / limit(point, machine):.0%}",
        ])  # fmt: skip
    return table


def draw_roofline(points: Sequence[Point], machine: dict[str, float], path: Path) -> None:
    """Steps under the roof: hollow = plain, filled = guided."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    intensities = [point.intensity for point in points]
    left, right = min(intensities) / 4, max(intensities) * 8
    for precision in [key for key in machine if key != "GB/s"]:
        peak = machine[precision]
        ridge = peak / machine["GB/s"]
        xs = [min(left, ridge / 2), ridge, max(right, 2 * ridge)]
        axes.plot(xs, [xs[0] * machine["GB/s"], peak, peak], color="#444444")
        axes.annotate(f"{peak:.0f} GFLOP/s{'' if precision == 'no' else ', ' + precision}", (ridge, peak), (4, 5),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.annotate(f"{machine['GB/s']:.1f} GB/s", (left, left * machine["GB/s"]), (2, 10), textcoords="offset points",
                  fontsize=8, rotation=30)  # fmt: skip
    names = list(dict.fromkeys(point.backbone for point in points))
    markers = {"hard": "o", "soft": "s"}
    for point in points:
        colour = f"C{names.index(point.backbone)}"
        axes.plot(point.intensity, point.rate, markers[point.label], color=colour, markersize=7,
                  markerfacecolor=colour if point.kind == "guided" else "none")  # fmt: skip
    for number, name in enumerate(names):
        axes.plot([], [], "o", color=f"C{number}", label=name)
    axes.plot([], [], "o", color="grey", markerfacecolor="none", label="plain step (guided: filled)")
    axes.plot([], [], "s", color="grey", label="soft label (hard: round)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("arithmetic intensity, FLOP / byte, every operation by itself")
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
