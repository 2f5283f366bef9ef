"""How training scales past a few devices: communication volumes, and an alpha-beta model of a step's time.

python -m tools.benchmark.scaling                        the tables of docs/scaling.md, with the default assumptions
python -m tools.benchmark.scaling --write docs/scaling.md  puts them there
python -m tools.benchmark.scaling --bandwidth 12.5 --latency 30 --step-time 0.2 --devices 8 64 512
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from torch import nn

from provscale.files import markdown_table
from provscale.models import MODELS

TABLE = r"\A(\|.*\n)*"  # a Markdown table at a text's beginning
BYTES = 4  # parameters and gradients are FP32, also under bf16 autocast
PLAIN_FORWARDS, BACKWARD_SHARE = 3, 2 / 3  # a plain step costs 3 forwards: forward 1, backward 2
GUIDED_FORWARDS = {"hard": 6, "soft": 9}  # see docs/scaling.md

# Passes of (N - 1) / N of the model through each device's link, in each direction, for one optimizer step.
ENGINES = {
    "DDP": (2, "all-reduce of gradients = reduce-scatter + all-gather"),
    "ZeRO-1": (2, "reduce-scatter of gradients, all-gather of updated parameters"),
    "ZeRO-2": (2, "reduce-scatter of gradients, all-gather of updated parameters"),
    "ZeRO-3": (3, "all-gather for the step, again before the backward pass, reduce-scatter of gradients"),
    "FSDP2": (2, "all-gather for the step, kept until the backward pass, reduce-scatter of gradients"),
}


@dataclass(frozen=True)
class Backbone:
    """One column of the paper's Table 8.

    Attributes:
        parameters: number of trained values.
        buffers: floating-point BatchNorm statistics, averaged over processes after every step.
        label: hard (one input gradient) or soft (two).
        batch: the paper's global batch.
    """

    name: str
    parameters: int
    buffers: int
    label: str
    batch: int


def sizes(network: nn.Module) -> tuple[int, int]:
    """Trained values, and floating-point buffer values."""
    buffers = sum(buffer.numel() for buffer in network.buffers() if buffer.is_floating_point())
    return sum(parameter.numel() for parameter in network.parameters()), buffers


def registered(name: str, classes: int, formula: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Counts the project's own model where it is registered, else uses a formula."""
    return sizes(MODELS[name](num_classes=classes)) if name in MODELS else formula()


def vgg16_cam(classes: int) -> tuple[int, int]:
    """VGG16's convolutions, a 3x3 convolution 512 -> 1024 with bias, a linear layer."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    convolutions = sum(9 * before * after + after for before, after in itertools.pairwise(widths))
    return convolutions + (9 * 512 * 1024 + 1024) + (1024 + 1) * classes, 0


def deit_s_sat(classes: int) -> tuple[int, int]:
    """DeiT-S with a second token (and its position), whose classifier is a 3x3 convolution on patch tokens."""
    width = 384
    backbone, _ = sizes(timm.create_model("deit_small_patch16_224", num_classes=0))
    return backbone + 2 * width + (9 * width + 1) * classes, 0


def backbones() -> list[Backbone]:
    """Table 8's columns, with the class counts of its data sets."""

    def resnet(classes: int) -> tuple[int, int]:
        return sizes(timm.create_model("resnet50", num_classes=classes))

    rows: list[tuple[str, tuple[int, int], str, int]] = [
        ("UCF101-24, SKP", registered("skp", 24, lambda: (0, 0)), "soft", 30),
        ("CUB, VGG16-CAM", registered("vgg16_cam", 200, lambda: vgg16_cam(200)), "soft", 32),
        ("CUB, DeiT-S (SAT)", registered("deit_small_sat", 200, lambda: deit_s_sat(200)), "soft", 32),
        ("CUB, ResNet-50", resnet(200), "hard", 128),
        ("iWildCam, ResNet-50", resnet(7), "hard", 128),
        ("Waterbirds, ResNet-50", resnet(2), "hard", 128),
    ]
    return [Backbone(name, parameters, buffers, label, batch) for name, (parameters, buffers), label, batch in rows]


def volume(backbone: Backbone, engine: str, devices: int) -> float:
    """Bytes that each device sends in one step (ring or halving-doubling algorithms, which move the minimum)."""
    passes = ENGINES[engine][0]
    # Buffers are all-reduced (two passes) whatever the engine.
    return (devices - 1) / devices * BYTES * (passes * backbone.parameters + 2 * backbone.buffers)


@dataclass(frozen=True)
class Machine:
    """The alpha-beta model's assumptions.

    Attributes:
        bandwidth: bytes a second that one device can send while all others do too (its share of the slowest link).
        latency: seconds for one message between two devices.
        step_time: seconds of a plain, unguided step of one device's batch, without communication.
        bucket: bytes of one collective call.
    """

    bandwidth: float
    latency: float
    step_time: float
    bucket: float = 25 * 2**20


def communication_time(backbone: Backbone, engine: str, devices: int, machine: Machine) -> float:
    """alpha-beta: calls x log2(N) x latency (trees) + bytes / bandwidth, in seconds."""
    if devices == 1:
        return 0.0
    passes = ENGINES[engine][0]
    calls = passes * math.ceil(BYTES * backbone.parameters / machine.bucket) + 2 * (backbone.buffers > 0)
    return (
        calls * math.ceil(math.log2(devices)) * machine.latency + volume(backbone, engine, devices) / machine.bandwidth
    )


def efficiency(backbone: Backbone, engine: str, devices: int, machine: Machine, guided: bool) -> float:
    """Share of a device's time that is spent computing, with a constant batch for each device (weak scaling).

    A plain step hides communication behind its backward pass, as far as that is long; a guided step on the carrier
    hides none, because all gradients appear at once at its end.
    """
    waiting = communication_time(backbone, engine, devices, machine)
    if guided:
        computing = machine.step_time * GUIDED_FORWARDS[backbone.label] / PLAIN_FORWARDS
    else:
        computing = machine.step_time
        waiting = max(0.0, waiting - BACKWARD_SHARE * computing)
    return computing / (computing + waiting)


def speedup(backbone: Backbone, engine: str, devices: int, machine: Machine) -> float | None:
    """Guided steps a second on N devices, relative to one, at the paper's global batch (strong scaling).

    `machine.step_time` is that of the whole batch on one device. An upper bound: small batches use a device less well.
    None when the batch cannot be divided equally.
    """
    if backbone.batch % devices:
        return None
    computing = machine.step_time * GUIDED_FORWARDS[backbone.label] / PLAIN_FORWARDS
    return computing / (computing / devices + communication_time(backbone, engine, devices, machine))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([header, *rows], rule=["---", *["---:"] * (len(header) - 1)])


def volume_table(devices: int) -> str:
    header = ["model", "parameters", "label", *(f"{engine}, MB" for engine in ENGINES)]
    rows = []
    for backbone in backbones():
        cells = [f"{volume(backbone, engine, devices) / 1e6:.1f}" for engine in ENGINES]
        rows.append([backbone.name, f"{backbone.parameters:,}", backbone.label, *cells])
    return table(header, rows)


def efficiency_table(counts: Sequence[int], machine: Machine, engine: str) -> str:
    header = ["model", *(f"{kind}, {count}" for count in counts for kind in ("plain", "guided"))]
    rows = []
    for backbone in backbones():
        cells = [
            f"{100 * efficiency(backbone, engine, count, machine, guided):.1f} %"
            for count in counts
            for guided in (False, True)
        ]
        rows.append([backbone.name, *cells])
    return table(header, rows)


def speedup_table(counts: Sequence[int], machine: Machine, engine: str) -> str:
    header = ["model", "batch", *(str(count) for count in counts)]
    rows = []
    for backbone in backbones():
        found = [speedup(backbone, engine, count, machine) for count in counts]
        rows.append(
            [backbone.name, str(backbone.batch), *("-" if value is None else f"{value:.1f}x" for value in found)]
        )
    return table(header, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512], help="numbers of devices")
    parser.add_argument("--bandwidth", type=float, default=12.5, help="GB/s a device can send, all sending at once")
    parser.add_argument("--latency", type=float, default=20.0, help="microseconds of one message")
    parser.add_argument("--step-time", type=float, default=0.1, help="seconds of a plain step of one device's batch")
    parser.add_argument("--engine", choices=list(ENGINES), default="DDP", help="engine of the efficiency tables")
    parser.add_argument("--write", type=Path, help="put the tables into this file, below its <!-- NAME --> comments")
    options = parser.parse_args(arguments)
    if min(options.devices) < 1 or min(options.bandwidth, options.step_time) <= 0 or options.latency < 0:
        parser.error("devices must be at least 1, bandwidth and step time above 0, latency 0 or more")
    machine = Machine(options.bandwidth * 1e9, options.latency * 1e-6, options.step_time)
    tables = {
        "volumes": volume_table(options.devices[0]),
        "efficiency": efficiency_table(options.devices, machine, options.engine),
        "speed-up": speedup_table([2, *options.devices], machine, options.engine),
    }
    if options.write:
        text = options.write.read_text()
        for name, content in tables.items():
            head, marker, rest = text.partition(f"<!-- {name} -->\n")
            text = f"{head}{marker}{content}\n{re.sub(TABLE, '', rest, count=1)}" if marker else text
        options.write.write_text(text)
        return 0
    print(f"{options.engine}, {options.bandwidth} GB/s, {options.latency} us, plain step {options.step_time} s")
    for name, content in tables.items():
        print(f"\n{name} (see docs/scaling.md):\n\n{content}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
