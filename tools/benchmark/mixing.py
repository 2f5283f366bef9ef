"""What mixing costs per batch, beside the guided step that it feeds.

    python -m tools.benchmark.mixing --backbone deit_small_sat                 its batch in Table 8: 32 images of 224 px
    python -m tools.benchmark.mixing --backbone vgg16_cam --batch 4 --size 96

Each synthesis mixes one batch with another; "saliency" is the forward and backward pass that PuzzleMix asks for. The
clock is that of tools/benchmark/timing.py: CPU time on one thread, wall time on CUDA. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from provscale.errors import UserError, reported
from provscale.predictions import predict
from provscale.sample import Sample
from provscale.synthesis import CutMix, Mixing, PuzzleMix, ResizeMix
from tools.benchmark.__main__ import chosen
from tools.benchmark.cases import ALPHA, FULL, Case, build, make_sample, make_step
from tools.benchmark.tables import Timing
from tools.benchmark.timing import measure, step_arm

MIXINGS: dict[str, Mixing] = {
    "CutMix": CutMix(),
    "ResizeMix": ResizeMix(),
    "ResizeMix, clipped, nearest": ResizeMix(placement="clipped", interpolation="nearest"),
    "PuzzleMix, exact": PuzzleMix(),
}


def arms_of(case: Case, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Every synthesis, the saliency, and a guided step of the case with two sources per sample."""
    mixings = dict(MIXINGS)
    with contextlib.suppress(UserError):  # gco-wrapper is an extra
        mixings["PuzzleMix, swap"] = PuzzleMix(solver="swap")
    first, second = (real_batch(case, device, seed) for seed in (0, 1))
    arms: dict[str, Callable[[], Any]] = {
        name: partial(mixing, first, second, (0, 0)) for name, mixing in mixings.items()
    }
    network = build(case).to(device)
    still = build(case).to(device).eval()
    arms["saliency"] = partial(predict, still, first, ["saliency"], None)
    step = make_step(network.train(), "soft", "no", "eager")
    arms["guided step"] = step_arm(step, make_sample(case, "soft", device), ALPHA)
    return arms


def real_batch(case: Case, device: torch.device, seed: int) -> Sample:
    """Images of noise with a saliency of some peaks."""
    generator = torch.Generator().manual_seed(seed)
    sample = Sample.real(
        torch.randn(case.batch, 3, case.size, case.size, generator=generator), torch.arange(case.batch) % 5
    )
    sample.annotations["saliency"] = torch.rand(case.batch, 1, case.size, case.size, generator=generator) ** 8
    return sample.to(device)


def table(case: Case, times: dict[str, Timing | str]) -> str:
    """Milliseconds per batch, and percent of the guided step."""
    step = times["guided step"]
    lines = [f"| {case.backbone}, {case.shape} | ms per batch | percent of a guided step |", "| --- | --- | --- |"]
    for name, timing in times.items():
        if isinstance(timing, str) or isinstance(step, str):
            lines.append(f"| {name} | {timing} | - |")
        else:
            lines.append(
                f"| {name} | {timing.median:.4g} ({timing.low:.4g}-{timing.high:.4g}) | "
                f"{100 * timing.median / step.median:.2g} |"
            )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    case = chosen(FULL, [options.backbone])[0]
    case = replace(case, batch=options.batch or case.batch, size=options.size or case.size)
    device = torch.device(options.device)
    print(table(case, measure(arms_of(case, device), options.rounds, device)))


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vgg16_cam")
    parser.add_argument("--batch", type=int, help="images; default: the case's")
    parser.add_argument("--size", type=int, help="pixels, a multiple of 16; default: the case's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    return reported(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
