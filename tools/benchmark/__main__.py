"""Times guided steps against plain ones, in one run, and writes tables, JSON and picture.

    python -m tools.benchmark --quick                      minutes on a CPU: small images, eager
    python -m tools.benchmark                              on a CUDA device: Table 8's sizes, every executor
    python -m tools.benchmark --quick --doc docs/benchmarks/README.md
    python -m tools.benchmark --quick --parts engines --backbones resnet50 deit      small images under every engine
    python -m tools.benchmark --quick --parts memory roofline                        the parts that are not timed steps
    python -m tools.benchmark --device cpu --batch 8 --parts step --labels soft      Table 8's images, fewer of them

The part `step` times per backbone and kind of label, in turns, so that a slow moment of the machine hits all alike:

    guided        a step with guidance under an executor
    plain         the same step without guidance under the same executor
    plain eager   forward, cross-entropy, loss.backward(): what one would train without this package
    by hand       the loop one would write: forward, autograd.grad(create_graph=True), loss.backward()

each up to the gradients. `engines` times whole optimizer steps under each engine, in processes of its own (two on a
CPU, one for every CUDA device), with "plain eager" and "by hand" as losses inside the same wrapped module; an arm whose
first step changes the weights otherwise than the guided eager step's is not timed but named. `memory` measures peaks
and the largest batch that fits. `roofline` counts operations and bytes and compares with what the machine can do.

On a CPU the clock is CPU time, of all processes together, on one thread each, which other programs disturb little; on
CUDA it is wall time between synchronisations. A first round warms up (and compiles) and is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from provscale.config import Config
from provscale.errors import UserError, reported
from provscale.files import update_document, write_atomically
from provscale.guidance.executors.base import EXECUTORS
from tools.benchmark.budget import Budget
from tools.benchmark.cases import FLOOR, FULL, QUICK, Case, possible, sized
from tools.benchmark.engines import ENGINES, EngineProcesses, run_case
from tools.benchmark.goals import goals_table
from tools.benchmark.memory import MIB, memory_rows, memory_table
from tools.benchmark.roofline import draw_roofline, measure_machine, roofline_points, roofline_table
from tools.benchmark.tables import Row, Timing, draw, markdown, show, times_table
from tools.benchmark.timing import make_row, step_row, summarise

ROOT = Path(__file__).parents[2]
EVERY_EXECUTOR = ["eager", "compiled", "cuda_graph", "cuda_graph_compiled"]
PARTS = ("step", "engines", "memory", "roofline")
QUICK_ENGINES = [(Case("resnet18", 4, 48), "soft", "no")]
"""What the engines run with --quick, where no backbones are named."""
CPU_BUDGET = 512.0
"""MiB of memory for which the part `memory` looks for the largest batch on a CPU."""


def engine_rows(
    engines: Sequence[str],
    work: Sequence[tuple[Case, str, str]],
    executors: Sequence[str],
    rounds: int,
    on_cuda: bool,
    budget: Budget,
) -> list[Row]:
    """Whole steps under every engine; an item of work is a network, a kind of label and a precision."""
    rows: list[Row] = []
    for case, label, precision in work:
        # New processes for each: DeepSpeed does not give back all of an engine's memory.
        with ExitStack() as stack:
            processes = [stack.enter_context(EngineProcesses(name, on_cuda)) for name in engines]
            for engine in processes:
                engine.connect()
            for executor in executors:
                what = f"engines: {case.backbone}, {label}, {precision}, {executor}"
                results = budget.take(what, run_case, processes, case, label, executor, precision, rounds)
                if results is None:
                    continue
                for engine in processes:
                    times: dict[str, Timing | str] = {
                        arm: found if isinstance(found, str) else summarise(found)
                        for arm, found in results[engine.name].items()
                    }
                    name = f"{engine.name}, {engine.size} process{'es' if engine.size > 1 else ''}"
                    rows.append(make_row(case, label, executor, precision, times, name))
    return rows


def hardware(device: torch.device, rounds: int) -> dict[str, Any]:
    """What the numbers depend on."""
    on_cuda = device.type == "cuda"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if on_cuda else f"CPU {cpu_name()}",
        "threads": torch.get_num_threads(),
        "clock": "wall time between synchronisations" if on_cuda else "CPU time of all processes",
        "rounds": rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_cuda else None,
        "timm": timm.__version__,
        "torchvision": torchvision.__version__,
        "tf32": torch.backends.cuda.matmul.allow_tf32 if on_cuda else None,
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def chosen(cases: Sequence[Case], words: Sequence[str] | None) -> list[Case]:
    """The cases whose backbone contains one of the words, in the words' order."""
    if words is None:
        return list(cases)
    found = list(dict.fromkeys(case for word in words for case in cases if word in case.backbone))
    if not found:
        raise UserError(f"--backbones: {words} fits none of: {', '.join(case.backbone for case in cases)}")
    return found


def run(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    on_cuda = device.type == "cuda"
    executors = options.executors or (EVERY_EXECUTOR if on_cuda else ["eager"])
    for name in executors:
        EXECUTORS[name]()  # an unknown or impossible one is refused before anything is measured
    torch.backends.cudnn.benchmark = Config().train.cudnn_benchmark  # as in training
    if not on_cuda:
        torch.set_num_threads(1)
    cases = chosen(QUICK if options.quick else FULL, options.backbones)
    cases = [replace(case, channels_last=options.channels_last, batch=options.batch or case.batch) for case in cases]
    # One precision after the other, so that a limit of time leaves whole tables.
    work = [
        (sized(case, label), label, kind) for kind in options.precision for case in cases for label in options.labels
    ]
    whole = [item for item in work if item[1] in ("hard", "soft")]
    rounds = options.rounds or (3 if options.quick else 20)
    # Runs beside the usual ones get files and tables of their own.
    beside = [*(options.executors or []), *["channels-last"] * options.channels_last]
    beside += [f"batch-{options.batch}"] * bool(options.batch)
    suffix = "".join(f"-{word}" for word in beside)
    name = f"{'quick-' if options.quick else ''}{device.type}{suffix}"
    options.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(options.minutes)
    about = {**hardware(device, rounds), "left_out": budget.left_out}
    if "step" in options.parts:
        possibles = [(*item, executor) for item in work for executor in executors if possible(*item[:2], executor)]
        rows = [
            row
            for case, label, precision, executor in possibles
            if (row := budget.take(f"{case.backbone}, {label}, {precision}, {executor}", step_row, case, label,
                                   executor, precision, rounds, device)) is not None
        ]  # fmt: skip
        if rows:
            draw(rows, options.out / f"{name}.svg")
        keep(options, name, f"measured{suffix}", about, rows, times_table(rows))
        show(goals_table(rows))
    if "engines" in options.parts:
        short = options.quick and options.backbones is None
        rows = engine_rows(options.engines, QUICK_ENGINES if short else whole, executors, rounds, on_cuda, budget)
        keep(options, f"engines-{name}", f"engines{suffix}", about, rows, times_table(rows))
    if "memory" in options.parts:
        limit = options.budget or (
            torch.cuda.get_device_properties(device).total_memory / MIB if on_cuda else CPU_BUDGET
        )
        found = [row for item in whole for row in memory_rows(*item, executors, device, limit, budget)]
        keep(options, f"memory-{name}", f"memory{suffix}", about, found, memory_table(found))
    if "roofline" in options.parts:
        machine = measure_machine(device, options.precision)
        points = [
            point
            for item in whole
            for point in budget.take(f"roofline: {item[0].backbone}, {item[1]}, {item[2]}", roofline_points, *item,
                                     rounds, device) or []
        ]  # fmt: skip
        if points:
            draw_roofline(points, machine, options.out / f"roofline-{name}.svg")
        about |= {"machine": machine}
        keep(options, f"roofline-{name}", f"roofline{suffix}", about, points, roofline_table(points, machine))
    budget.close()


def keep(
    options: argparse.Namespace,
    name: str,
    marker: str,
    about: dict[str, Any],
    rows: Sequence[Any],
    table: list[list[str]],
) -> None:
    """A part's table on the terminal and in the document, its rows as JSON in the output folder."""
    show(table)
    path = options.out / f"{name}.json"
    write_atomically(path, json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if options.doc is not None:
        update_document(options.doc, markdown(table, about), marker)
    print(f"written: {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images and few rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--executors", nargs="+", help="default: eager on a CPU, all on CUDA")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["step", "engines"], help="default: step engines")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="default: all")
    parser.add_argument("--precision", nargs="+", default=["no"], choices=["no", "bf16"])
    parser.add_argument("--labels", nargs="+", default=list(FLOOR), choices=list(FLOOR))
    parser.add_argument("--backbones", nargs="+", help="words that a backbone's name must contain one of")
    parser.add_argument("--batch", type=int, help="samples of a batch (default: each case's own)")
    parser.add_argument("--channels-last", action="store_true", help="weights of convolutions with channels last")
    parser.add_argument("--rounds", type=int, help="counted rounds (default: 3 quick, else 20)")
    parser.add_argument("--budget", type=float, help="MiB for the largest batch (default: the GPU's; 512 on a CPU)")
    parser.add_argument("--minutes", type=float, help="leave out and list measurements that do not fit, and "
                        "those that fail (default: no limit; the first error ends the run)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="folder of JSON and picture")
    parser.add_argument("--doc", type=Path, help="Markdown file whose measured tables are replaced")
    options = parser.parse_args(arguments)
    return reported(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
