"""Where the time of a guided step goes: by kind of operation and by phase, beside a plain step.

    python -m tools.benchmark.profile_step --quick                                   small images, seconds a network
    python -m tools.benchmark.profile_step                                           Table 8's sizes, for a GPU
    python -m tools.benchmark.profile_step --batch vgg16=4 deit=8 resnet50=8 --doc docs/benchmarks/README.md

PyTorch's profiler records whole training steps of `GuidedStep`. An operation's time is what it spends outside the
operations it calls: on CUDA that of its kernels, on a CPU its own. "outside operations" is the rest of the step:
Python, autograd, dispatch, on CUDA the time in which the device waits. The profiler's clock is wall time; on a CPU,
where other programs may hold up a step, all figures of a step are scaled to the process's CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from provscale.errors import UserError, reported
from provscale.files import update_document
from provscale.guidance import objective
from provscale.guidance.step import PRECISIONS, GuidedStep
from provscale.sample import Sample
from tools.benchmark.__main__ import chosen as backbones_with
from tools.benchmark.__main__ import hardware
from tools.benchmark.budget import Budget
from tools.benchmark.cases import ALPHA, FULL, QUICK, Case, build, make_sample, make_step
from tools.benchmark.profile_kinds import COLOURS, ORDER, OUTSIDE, kind_of

ROOT = Path(__file__).parents[2]
HARD_LABELS = ("resnet50",)
"""Table 8's ImageNet experiment; the others mix two images or clips."""

FORWARD, INPUT, PARAMETERS, HANDOVER = "forward", "input gradients", "parameter gradients", "hand-over of gradients"
FUNCTIONS = {"run_network": FORWARD, "guidance_loss": INPUT}


@dataclass
class Profile:
    """Milliseconds of one step, by kind of operation and by phase; both add up to `total`.

    Attributes:
        outside: of each phase, the part outside operations.
        unprofiled: the same step without the profiler.
    """

    total: float
    unprofiled: float
    kinds: dict[str, float]
    phases: dict[str, float]
    outside: dict[str, float]


@contextmanager
def phases_recorded(on_cuda: bool) -> Iterator[None]:
    """Names forward pass and input gradients of every step inside; restores the package's functions after it."""
    saved = {name: getattr(objective, name) for name in FUNCTIONS}

    def named(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with phase_of(phase, on_cuda):
                return function(*arguments)

        return call

    try:
        for name, phase in FUNCTIONS.items():
            setattr(objective, name, named(saved[name], phase))
        yield
    finally:
        for name, function in saved.items():
            setattr(objective, name, function)


@contextmanager
def phase_of(name: str, on_cuda: bool) -> Iterator[None]:
    """A named range; on CUDA it ends when the device has done what was started in it, so that it holds its kernels."""
    with record_function(name):
        yield
        if on_cuda:
            torch.cuda.synchronize()


def run_step(step: GuidedStep, sample: Sample, alpha: float) -> None:
    """One training step up to the gradients."""
    on_cuda = sample.inputs.is_cuda
    with phase_of(PARAMETERS, on_cuda):  # what is left of it once the two others are taken out
        loss = step(sample, alpha=alpha)["loss"]
    with phase_of(HANDOVER, on_cuda):
        loss.backward()
    step.zero_grad(set_to_none=True)


def timed(step: GuidedStep, sample: Sample, alpha: float) -> tuple[float, float]:
    """Wall and CPU seconds of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    run_step(step, sample, alpha)
    return time.perf_counter() - wall, time.process_time() - cpu


def profile_step(step: GuidedStep, sample: Sample, alpha: float) -> Profile:
    on_cuda = sample.inputs.is_cuda
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    unprofiled = timed(step, sample, alpha)[0 if on_cuda else 1]
    with phases_recorded(on_cuda), profile(activities=activities) as recorded:
        wall, cpu = timed(step, sample, alpha)
    found = summarise(recorded.events(), on_cuda)
    scale = 1.0 if on_cuda else cpu / wall
    scaled = {name: {key: scale * value for key, value in getattr(found, name).items()}
              for name in ("kinds", "phases", "outside")}  # fmt: skip
    return replace(found, total=scale * found.total, unprofiled=1e3 * unprofiled, **scaled)


def summarise(events: Sequence[Any], on_cuda: bool) -> Profile:
    """Sums the profiler's events of one step, in milliseconds.

    A backward pass may run in another thread than the one that waits for it, so an operation belongs to the phase
    in whose time it was called.
    """
    called = [event for event in events if event.device_type == DeviceType.CPU]
    ranges = {event.name: event.time_range for event in called if event.name in (FORWARD, INPUT, PARAMETERS, HANDOVER)}
    phases = {name: ranges[name].elapsed_us() for name in (FORWARD, INPUT, PARAMETERS, HANDOVER) if name in ranges}
    phases[PARAMETERS] -= phases[FORWARD] + phases.get(INPUT, 0.0)
    kinds, inside = dict.fromkeys(ORDER, 0.0), dict.fromkeys(phases, 0.0)
    for event in called:
        start = event.time_range.start
        # Forward and input gradients come first: their ranges lie within that of the whole step.
        phase = next((name for name in phases if ranges[name].start <= start <= ranges[name].end), None)
        if phase is None or not event.name.startswith("aten::"):
            continue
        own = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        kinds[kind_of(event.name, callers(event))] += own
        inside[phase] += own
    total = sum(phases.values())
    kinds[OUTSIDE] = total - sum(kinds.values())
    outside = {name: (phases[name] - inside[name]) / 1e3 for name in phases}
    return Profile(
        total / 1e3, 0.0, {k: v / 1e3 for k, v in kinds.items()}, {k: v / 1e3 for k, v in phases.items()}, outside
    )


def callers(event: Any) -> list[str]:
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(re.sub(r"Backward\d+$", "Backward", event.name))
    return names


def label_of(case: Case) -> str:
    return "hard" if case.backbone in HARD_LABELS else "soft"


def measure(case: Case, precision: str, rounds: int, device: torch.device) -> dict[str, Profile]:
    """Plain and guided step in turns; of each the round of median total time, after an uncounted one."""
    torch.manual_seed(0)
    label = label_of(case)
    step = make_step(build(case).to(device).train(), label, precision, "eager")
    sample = make_sample(case, label, device)
    found: dict[str, list[Profile]] = {"plain": [], "guided": []}
    for number in range(rounds + 1):
        for name, alpha in (("plain", 0.0), ("guided", ALPHA)):
            if number:
                found[name].append(profile_step(step, sample, alpha))
            else:
                run_step(step, sample, alpha)
    return {name: sorted(each, key=lambda one: one.total)[(rounds - 1) // 2] for name, each in found.items()}


Rows = dict[str, dict[str, Profile]]


def markdown(rows: Rows, about: dict[str, Any]) -> str:
    """Two tables: kinds, plain and guided; phases of the guided step, and the plain one's forward pass."""
    heading = ["| | " + " | ".join(rows) + " |", "|---|" + "---|" * len(rows)]
    lines = ["Milliseconds of a plain and of a guided step, and their ratio:", "", *heading]
    for kind in ORDER:
        pairs = [(row["plain"].kinds[kind], row["guided"].kinds[kind]) for row in rows.values()]
        if max(max(pair) for pair in pairs) > 0:
            lines.append(f"| {kind} | " + " | ".join(pair_text(*pair) for pair in pairs) + " |")
    totals = [pair_text(row["plain"].total, row["guided"].total) for row in rows.values()]
    lines += ["| **whole step** | " + " | ".join(totals) + " |"]
    lines += [
        "",
        "Milliseconds of each phase of a guided step, and how much of it is outside operations:",
        "",
        *heading,
    ]
    for phase in (FORWARD, INPUT, PARAMETERS, HANDOVER):
        cells = [f"{row['guided'].phases[phase]:.4g} ({row['guided'].outside[phase]:.3g})" for row in rows.values()]
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    clock = "wall time, of operations their kernels' time" if about["cuda"] else "CPU time of the process"
    note = f"{about['device']}, {about['threads']} thread(s), torch {about['torch']}, {about['date']}; {clock}."
    return "\n".join([*lines, "", note])


def pair_text(plain: float, guided: float) -> str:
    ratio = f" ({guided / plain:.1f})" if plain > 0.005 * max(guided, 1) else ""
    return f"{plain:.3g}, {guided:.3g}{ratio}" if max(plain, guided) > 0 else "-"


def draw(rows: Rows, path: Path) -> None:
    """A bar for every step, in multiples of the plain one, cut by kind."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "profile"}):
        figure, axes = plt.subplots(figsize=(9, 0.8 * len(rows) + 1.8), layout="constrained")
        names: list[str] = []
        for row, steps in rows.items():
            for arm in ("plain", "guided"):
                left = 0.0
                for kind, colour in zip(ORDER, COLOURS, strict=True):
                    width = steps[arm].kinds[kind] / steps["plain"].total
                    axes.barh(len(names), width, 0.8, left=left, color=colour, label=None if names else kind)
                    left += width
                names.append(f"{row}, {arm}")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("time of a step / time of a plain step")
        figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def chosen(options: argparse.Namespace) -> list[Case]:
    """Cases whose name contains one of the words, with the batches of `--batch`."""
    found = backbones_with(QUICK if options.quick else FULL, options.backbones)
    for entry in options.batch:
        word, _, number = entry.partition("=")
        if not (word and number.isdecimal() and int(number) > 1 and any(word in case.backbone for case in found)):
            raise UserError(f"--batch: is '{entry}', must be WORD=NUMBER, e.g. resnet50=8, with a number of 2 or more")
        found = [replace(case, batch=int(number)) if word in case.backbone else case for case in found]
    return found


def run(options: argparse.Namespace) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler says on standard error that there is no GPU
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    budget = Budget(options.minutes)
    rows: Rows = {}
    for case in chosen(options):
        labels = label_of(case)
        name = f"{case.backbone}, {case.shape}, {labels}"
        found = budget.take(name, measure, case, options.precision, options.rounds, device)
        if found is not None:
            rows[name] = found
    about = {**hardware(device, options.rounds), "precision": options.precision, "left_out": budget.left_out}
    precision = "" if options.precision == "no" else f"-{options.precision}"
    name = f"profile-{'quick-' if options.quick else ''}{device.type}{precision}"
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "rows": {row: {arm: asdict(p) for arm, p in arms.items()} for row, arms in rows.items()}}
    (options.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(rows, options.out / f"{name}.svg")
    text = markdown(rows, about)
    print(text)
    if options.doc is not None:
        update_document(options.doc, text, "profile")
    print(f"\nwritten: {options.out / name}.json and .svg")
    budget.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backbones", nargs="+", help="words that a backbone's name must contain one of")
    parser.add_argument("--batch", nargs="+", default=[], help="WORD=NUMBER: other batch sizes, e.g. resnet50=8")
    parser.add_argument("--precision", default="no", choices=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=3, help="profiled steps of each kind (default: 3)")
    parser.add_argument("--minutes", type=float, help="networks that do not fit are left out and listed")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="folder of JSON and picture")
    parser.add_argument("--doc", type=Path, help="Markdown file whose table between <!-- profile --> is replaced")
    return reported(lambda: run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
