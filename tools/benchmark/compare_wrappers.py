"""This package's engines beside PyTorch's own ways to wrap a network, with Eq. 1 by hand: two processes on a CPU.

python -m tools.benchmark.compare_wrappers --doc docs/benchmarks/README.md       all of them, the quick cases
python -m tools.benchmark.compare_wrappers --backbones resnet50 --wrappers DDP "DDP, static_graph"

Every wrapper has two processes of its own, and takes its steps in turns with this package's DDP. The numbers are right
where three optimizer steps change the weights as they do when each process averages its gradients by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from provscale.errors import UserError, reported
from tools.benchmark.__main__ import ROOT, chosen, hardware, keep
from tools.benchmark.cases import QUICK, Case
from tools.benchmark.engines import EngineProcesses
from tools.benchmark.wrappers import OWN, WRAPPERS

KNOWN = [*OWN, *WRAPPERS]
REFERENCE = next(iter(WRAPPERS))
BESIDE = "this package, DDP"
EXACT = 1e-5
"""Relative difference of the weights' change below which the numbers are the same in FP32."""
HEADINGS = (
    "backbone",
    "wrapper",
    "numbers",
    "CPU time of a step, this package's DDP = 1",
    "peak memory of a process, MiB",
)


@dataclass
class Found:
    """One wrapper on one case.

    Attributes:
        ratio: CPU time of its step over that of this package's under DDP; None where the numbers are wrong.
        peak: of its larger process's resident memory, MiB; None where the numbers are wrong.
    """

    backbone: str
    wrapper: str
    numbers: str
    ratio: float | None = None
    peak: float | None = None


def verdict(found: NDArray[np.float64] | str, expected: NDArray[np.float64]) -> str:
    """`the same`, how far off the weights' change is, or how the steps failed."""
    if isinstance(found, str):
        return found
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return f"the same ({difference:.0e})" if difference < EXACT else f"wrong by {difference:.0%}, without an error"


def started(wrapper: str, stack: contextlib.ExitStack) -> EngineProcesses:
    words = ("tools.benchmark.wrappers", wrapper)
    processes = stack.enter_context(EngineProcesses(OWN.get(wrapper, "ddp"), False, words))
    processes.connect()
    return processes


def compare(case: Case, wrappers: Sequence[str], rounds: int) -> list[Found]:
    """One row for each wrapper, timed in turns with this package's DDP; two wrappers' processes at a time."""
    rows = []
    with contextlib.ExitStack() as stack:
        own = started(BESIDE, stack)
        with contextlib.ExitStack() as short:
            expected = started(REFERENCE, short).call("change", case, "hard")[0]
        for name in wrappers:
            with contextlib.ExitStack() as short:
                processes = started(name, short)
                row = Found(case.backbone, name, verdict(processes.call("change", case, "hard")[0], expected))
                rows.append(row)
                print(f"{case.backbone}, {name}: {row.numbers}", flush=True)
                if not row.numbers.startswith("the same"):
                    continue
                own.call("build", case, "hard")
                seconds: dict[EngineProcesses, list[float]] = {processes: [], own: []}
                for number in range(rounds + 1):
                    for pair, spent in seconds.items():
                        taken = sum(pair.call("seconds"))
                        if number:
                            spent.append(taken)
                row.ratio = statistics.median(seconds[processes]) / statistics.median(seconds[own])
                row.peak = max(processes.call("peak"))
    return rows


def table(rows: Sequence[Found]) -> list[list[str]]:
    lines = [list(HEADINGS)]
    for row in rows:
        measured = [f"{row.ratio:.2f}" if row.ratio else "", f"{row.peak:.0f}" if row.peak else ""]
        lines.append([row.backbone, row.wrapper, row.numbers, *measured])
    return lines


def run(options: argparse.Namespace) -> None:
    for name in options.wrappers:
        if name not in KNOWN:
            raise UserError(f"--wrappers: '{name}' is unknown, must be one of: {', '.join(KNOWN)}")
    rows = [row for case in chosen(QUICK, options.backbones) for row in compare(case, options.wrappers, options.rounds)]
    options.out.mkdir(parents=True, exist_ok=True)
    keep(options, "wrappers-cpu", "wrappers", hardware(torch.device("cpu"), options.rounds), rows, table(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", help="words that the backbones' names contain (default: all)")
    parser.add_argument("--wrappers", nargs="+", default=KNOWN, help="names (default: all)")
    parser.add_argument("--rounds", type=int, default=10, help="counted steps of each (default: 10)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="folder of the JSON")
    parser.add_argument("--doc", type=Path, help="Markdown file whose measured table is replaced")
    return reported(lambda: run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
