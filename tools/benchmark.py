"""Times guided steps against plain ones, in one run, and writes table, JSON and picture.

    python tools/benchmark.py --quick                      minutes on a CPU: small images, eager
    python tools/benchmark.py                              on a CUDA device: Table 8's sizes, every executor
    python tools/benchmark.py --quick --doc docs/performance.md

Per backbone and kind of label it times, in turns, so that a slow moment of the machine hits all alike:

    guided        a step with guidance under an executor
    plain         the same step without guidance under the same executor
    plain eager   forward, cross-entropy, loss.backward(): what one would train without this package
    by hand       the loop one would write: forward, autograd.grad(create_graph=True), loss.backward()

On a CPU the clock is the process's CPU time on one thread, which other processes disturb little; on CUDA it is wall
time between synchronisations. A first round warms up (and compiles) and is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from benchmark_report import Row, Timing, draw, markdown, show
from demo import update_document
from torch import Tensor, nn

from provscale.errors import UserError
from provscale.guidance import PRECISIONS, GuidedStep, classification_loss
from provscale.guidance.executors import twice_differentiable_attention
from provscale.sample import Sample

ROOT = Path(__file__).parents[1]
FLOOR = {"hard": 2.0, "soft": 3.0, "soft, one term": 2.0}
"""Least ratio to a plain step, counting passes: docs/performance.md."""
ALPHA = 0.05
CLASSES = 200


@dataclass(frozen=True)
class Case:
    """One network on one batch shape; `size` in pixels."""

    backbone: str
    batch: int
    size: int


QUICK = [Case("vgg16 convolutions", 4, 48), Case("deit_small_patch16_224", 4, 64), Case("resnet50", 4, 64)]
FULL = [Case("vgg16 convolutions", 32, 224), Case("deit_small_patch16_224", 32, 224), Case("resnet50", 128, 224)]


def build(case: Case) -> nn.Module:
    if case.backbone == "vgg16 convolutions":
        # As for localisation: without the fully connected layers, which hold nine tenths of VGG16's weights.
        features = torchvision.models.vgg16().features
        return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))
    options: dict[str, Any] = {"img_size": case.size} if "deit" in case.backbone else {}
    return timm.create_model(case.backbone, num_classes=CLASSES, **options)


def make_sample(case: Case, soft: bool, device: torch.device) -> Sample:
    """Random inputs, classes and a mask whose left half is source A."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(case.batch, 3, case.size, case.size, generator=generator)
    targets = torch.randint(CLASSES, (case.batch, 2 if soft else 1), generator=generator)
    sample = Sample.real(inputs, targets[:, 0])
    mask = torch.zeros(case.batch, 1, case.size, case.size)
    mask[..., : case.size // 2] = 1
    weight = torch.full((case.batch,), 0.5 if soft else 1.0)
    everything = torch.ones(case.batch, dtype=torch.bool)
    return replace(
        sample, targets=targets, provenance_mask=mask, mixing_weight=weight, is_synthetic=everything, guided=True
    ).to(device)


def step_arm(step: GuidedStep, sample: Sample, alpha: float) -> Callable[[], None]:
    """One training step up to the gradients, as the trainer runs it."""

    def run() -> None:
        step.alpha = alpha
        step(sample)["loss"].backward()
        step.zero_grad(set_to_none=True)

    return run


def plain_arm(network: nn.Module, sample: Sample, dtype: torch.dtype | None) -> Callable[[], None]:
    """A step without guidance and without this package."""

    def run() -> None:
        with torch.autocast(sample.inputs.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits = network(sample.inputs)
        classification_loss(logits.float(), sample).backward()
        network.zero_grad(set_to_none=True)

    return run


def hand_arm(network: nn.Module, sample: Sample, dtype: torch.dtype | None) -> Callable[[], None]:
    """The same gradients by plain autograd, with nothing from this package but the cross-entropy."""

    def run() -> None:
        inputs = sample.inputs.detach().requires_grad_()
        with (
            twice_differentiable_attention(),
            torch.autocast(inputs.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            logits = network(inputs)
        logits = logits.float()
        masks = [1 - sample.provenance_mask, sample.provenance_mask]
        outside: Tensor | float = 0.0
        for column, mask in zip(sample.targets.unbind(1), masks, strict=False):
            score = logits.gather(1, column[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, inputs, create_graph=True)
            outside = outside + mask * gradient
        assert isinstance(outside, Tensor)
        penalty = outside.square().flatten(1).sum(dim=1).mean()
        (classification_loss(logits, sample) + ALPHA * penalty).backward()
        network.zero_grad(set_to_none=True)

    return run


def measure(arms: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Runs all arms in turns, `rounds` times after one uncounted round."""
    on_cuda = device.type == "cuda"
    clock = time.perf_counter if on_cuda else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    peaks: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, run in arms.items():
            if on_cuda:
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
            started = clock()
            run()
            if on_cuda:
                torch.cuda.synchronize(device)
                peaks[name] = torch.cuda.max_memory_allocated(device)
            if number:
                seconds[name].append(clock() - started)
    return {name: summarise([1e3 * value for value in values], peaks.get(name)) for name, values in seconds.items()}


def summarise(milliseconds: Sequence[float], peak: int | None = None) -> Timing:
    """Median and quartiles (minimum and maximum for fewer than four rounds)."""
    if len(milliseconds) < 4:
        return Timing(statistics.median(milliseconds), min(milliseconds), max(milliseconds), peak)
    low, middle, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Timing(middle, low, high, peak)


def run_case(
    case: Case, label: str, executors: Sequence[str], precision: str, rounds: int, device: torch.device
) -> list[Row]:
    """One row for each executor, all timed together."""
    torch.manual_seed(0)
    network = build(case).to(device).train()
    sample = make_sample(case, label != "hard", device)
    term = "batch" if label == "soft, one term" else "none"
    steps = {
        name: GuidedStep(network, ALPHA, precision=precision, executor=name, sampled_term=term) for name in executors
    }
    dtype = PRECISIONS[precision]
    arms = {"plain eager": plain_arm(network, sample, dtype), "by hand": hand_arm(network, sample, dtype)}
    for name, step in steps.items():
        arms[f"plain, {name}"] = step_arm(step, sample, 0.0)
        arms[f"guided, {name}"] = step_arm(step, sample, ALPHA)
    times = measure(arms, rounds, device)
    rows = []
    for name in executors:
        mine = {key: times[key] for key in ("plain eager", "by hand")}
        mine |= {"plain": times[f"plain, {name}"], "guided": times[f"guided, {name}"]}
        rows.append(Row(case.backbone, case.batch, case.size, label, name, precision, FLOOR[label], mine))
    return rows


def hardware(device: torch.device, rounds: int) -> dict[str, Any]:
    """What the numbers depend on."""
    on_cuda = device.type == "cuda"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if on_cuda else f"CPU {cpu_name()}",
        "threads": torch.get_num_threads(),
        "clock": "wall time between synchronisations" if on_cuda else "CPU time of the process",
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images and few rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--executors", nargs="+", help="default: eager on a CPU, all on CUDA")
    parser.add_argument("--precision", nargs="+", default=["no"], choices=["no", "bf16"])
    parser.add_argument("--labels", nargs="+", default=list(FLOOR), choices=list(FLOOR))
    parser.add_argument("--backbones", nargs="+", help="words that a backbone's name must contain one of")
    parser.add_argument("--rounds", type=int, help="counted rounds (default: 5 quick, else 20)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="folder of JSON and picture")
    parser.add_argument("--doc", type=Path, help="Markdown file whose measured table is replaced")
    options = parser.parse_args(arguments)
    try:
        device = torch.device(options.device)
        on_cuda = device.type == "cuda"
        executors = options.executors or (
            ["eager", "compiled", "cuda_graph", "cuda_graph_compiled"] if on_cuda else ["eager"]
        )
        if not on_cuda:
            torch.set_num_threads(1)
        cases = QUICK if options.quick else FULL
        words = options.backbones or [""]
        cases = [case for case in cases if any(word in case.backbone for word in words)]
        if not cases:
            raise UserError(f"--backbones: {words} fits none of: {', '.join(case.backbone for case in QUICK)}")
        rounds = options.rounds or (5 if options.quick else 20)
        rows: list[Row] = []
        for case in cases:
            for label in options.labels:
                for precision in options.precision:
                    print(f"[benchmark] {case.backbone}, {label}, {precision}", file=sys.stderr, flush=True)
                    rows += run_case(case, label, executors, precision, rounds, device)
        about = hardware(device, rounds)
        show(rows)
        name = f"{'quick-' if options.quick else ''}{device.type}"
        options.out.mkdir(parents=True, exist_ok=True)
        content = {"about": about, "rows": [asdict(row) for row in rows]}
        (options.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        draw(rows, options.out / f"{name}.svg")
        if options.doc is not None:
            update_document(options.doc, markdown(rows, about))
    except UserError as error:
        print(f"provscale: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.out / name}.json and .svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
