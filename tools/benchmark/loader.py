"""Times the trainer's loader against timm's at equal work, in one run, and writes JSON and a table.

    python -m tools.benchmark.loader --doc docs/benchmarks/README.md

Both read the same JPEG files (made here of photographs in installed packages, of 500 x 375 pixels, as CUB's are about)
and end with the same float32 batches [B, 3, S, S], normalised by ImageNet's mean and deviation, on the CPU.

    training     random resized crop (area 0.08 to 1, sides 3:4 to 4:3, bilinear with antialiasing), flip with p = 1/2
    evaluation   resize to S x S, both sides at once, bilinear with antialiasing

    provscale    data set `imagefolder`, LoadedItems, make_loader and `to`, as the trainer and `evaluate` call them: one
                 loader for all training epochs, a new one for every evaluation
    timm         create_dataset and create_loader(use_prefetcher=False), worker processes kept over epochs;
                 color_jitter=None, crop_mode="squash", crop_pct=1.0 make its transforms those above
    timm, prefetcher   the same with use_prefetcher=True: bytes from the workers, normalised afterwards

Not equal, and left so: Pillow resizes for timm, PyTorch for provscale (pixels differ by one of 255 at most; evaluation
pixels of both are compared before anything is timed); each draws its own crops; provscale seeds each image by (seed,
epoch, index), checks it, and makes a provenance mask; timm skips a file that it cannot read, provscale names it.

The clock is the CPU time of all processes, workers included from their start to their end, because other programs
disturb it little; wall time is given too. Loaders are timed in turns, each with its own processes; the first round is
not counted. Then what an edited image costs (its source decoded and compared, or its mask read), and a skeleton clip.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from provscale.config import DataConfig
from provscale.data import build_splits
from provscale.data.images.folder import IMAGENET_MEAN, IMAGENET_STD
from provscale.data.loader import LoadedItems, make_loader
from provscale.errors import UserError, reported
from provscale.synthesis import Edited, Synthesis
from tools.benchmark.images import CLASSES, make_images
from tools.benchmark.loader_report import Row, Speed, markdown

# Whatever else a tool imports is imported where it is used: every worker process imports this file.

ROOT = Path(__file__).parents[2]
Pass = Callable[[], int]
"""Loads everything once and returns how many samples that were."""


# ---- the loaders -------------------------------------------------------------------------------------------------
def our_batches(root: Path, size: int, batch: int, workers: int, training: bool, epochs: int) -> Iterator[Any]:
    """Finished samples, as the trainer (one loader for all epochs) or `evaluate` (one for each) gets them."""
    splits = build_splits(DataConfig(name="imagefolder", root=str(root), image_size=size), 0)
    source, transform = (
        (splits.train, splits.train_transform) if training else (splits.test, splits.evaluation_transform)
    )
    items = LoadedItems(source, Synthesis().prepare, transform, splits.num_classes, 0)
    generator = torch.Generator().manual_seed(0)
    passes: list[list[list[tuple[int, int]]]] = []
    for epoch in range(epochs):
        order = torch.randperm(len(items), generator=generator).tolist() if training else list(range(len(items)))
        passes.append([[(epoch, index) for index in order[i : i + batch]] for i in range(0, len(order), batch)])
    for keys in [[keys for part in passes for keys in part]] if training else passes:
        for loaded in make_loader(items, keys, workers, False):
            yield loaded.to("cpu")


def timm_batches(
    root: Path, size: int, batch: int, workers: int, training: bool, epochs: int, prefetcher: bool
) -> Iterator[tuple[Any, Any]]:
    """(inputs, targets); worker processes are kept over epochs."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(root / "train")),
        input_size=(3, size, size),
        batch_size=batch,
        is_training=training,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=None,  # type: ignore[arg-type]  # timm's own way to switch it off
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_workers=workers,
        crop_pct=1.0,
        crop_mode="squash",
        use_prefetcher=prefetcher,
        device=torch.device("cpu"),
    )
    for _ in range(epochs):
        yield from loader


def loader_passes(root: Path, size: int, batch: int, workers: int, training: bool, epochs: int) -> dict[str, Pass]:
    common = (root, size, batch, workers, training, epochs)
    return {
        "provscale": lambda: sum(len(sample) for sample in our_batches(*common)),
        "timm": lambda: sum(len(inputs) for inputs, _ in timm_batches(*common, False)),
        "timm, prefetcher": lambda: sum(len(inputs) for inputs, _ in timm_batches(*common, True)),
    }


def extra_passes(root: Path, size: int, batch: int, epochs: int) -> dict[str, Pass]:
    """Training images, edits whose mask is the difference to their source, and edits with a mask file."""
    from provscale.data.images.folder import FolderSplit

    splits = build_splits(DataConfig(name="imagefolder", root=str(root), image_size=size), 0)
    sources = {
        "image": splits.train,
        "edited image, source compared": FolderSplit(root / "edits", edited=True),
        "edited image, mask file": FolderSplit(root / "masked", edited=True),
    }
    return {
        name: items_pass(LoadedItems(source, Edited().prepare, splits.train_transform, CLASSES, 0), batch, epochs)
        for name, source in sources.items()
    }


def clip_passes(batch: int, epochs: int) -> dict[str, Pass]:
    """Clips of the planted actions at their defaults; empty without the package that holds the motions."""
    try:
        splits = build_splits(DataConfig(name="planted_actions", options={"train": 64, "test": 8}), 0)
    except UserError as error:
        print(f"[benchmark] no skeletons: {error}", file=sys.stderr, flush=True)
        return {}
    items = LoadedItems(splits.train, Synthesis().prepare, splits.train_transform, splits.num_classes, 0)
    return {"skeleton clip": items_pass(items, batch, epochs)}


def items_pass(items: LoadedItems, batch: int, epochs: int) -> Pass:
    keys = [
        [(epoch, index) for index in range(start, min(start + batch, len(items)))]
        for epoch in range(epochs)
        for start in range(0, len(items), batch)
    ]
    return lambda: sum(len(loaded.to("cpu")) for loaded in make_loader(items, keys, 0, False))


# ---- timing ------------------------------------------------------------------------------------------------------
def cpu_seconds() -> float:
    """CPU time so far of this process and of all it has started, those that have ended included."""
    me = psutil.Process()
    total = time.process_time() + me.cpu_times().children_user + me.cpu_times().children_system
    for process in me.children(recursive=True):
        try:
            spent = process.cpu_times()
        except psutil.Error:  # it has just ended, and its parent counts it
            continue
        total += spent.user + spent.system + spent.children_user + spent.children_system
    return total


def measure(case: str, workers: int, passes: dict[str, Pass], rounds: int) -> list[Row]:
    """Runs the passes in turns, `rounds` times after one uncounted round."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        for name, run in passes.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            samples = run()
            spent = (cpu_seconds() - cpu, time.perf_counter() - wall)
            if number:
                rates[name].append((samples / spent[0], samples / spent[1]))
    rows = []
    for name, values in rates.items():
        cpu_rate, wall_rate = (
            Speed(statistics.median(clock), min(clock), max(clock)) for clock in zip(*values, strict=True)
        )
        rows.append(Row(case, workers, name, cpu_rate, wall_rate))
    return rows


def compare_pixels(root: Path, size: int, batch: int) -> float:
    """Largest difference of the evaluation pixels of both loaders, in steps of 1/255. Raises UserError above 1."""
    deviation = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    largest = 0.0
    ours, theirs = (
        our_batches(root, size, batch, 0, False, 1), timm_batches(root, size, batch, 0, False, 1, False)
    )  # fmt: skip
    for sample, (inputs, targets) in zip(ours, theirs, strict=True):
        if not torch.equal(sample.targets[:, 0], targets):
            raise UserError("benchmark: the loaders give images in different orders; report this")
        largest = max(largest, float(((sample.inputs - inputs).abs() * deviation).max()) * 255)
    if largest > 1.01:
        raise UserError(f"benchmark: pixels of the two loaders differ by {largest:.2f} of 255; the work is not equal")
    return largest


# ---- report ----------------------------------------------------------------------------------------------------------
def run(options: argparse.Namespace) -> None:
    from provscale.files import update_document
    from tools.benchmark.__main__ import cpu_name

    torch.set_num_threads(1)
    if options.images % options.batch:
        raise UserError(
            f"--images: is {options.images}, must be a multiple of --batch {options.batch}, or timm drops some"
        )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root, options.images)
        difference = compare_pixels(root, options.size, options.batch)
        rows: list[Row] = []
        for case, training in (("training", True), ("evaluation", False)):
            for workers in options.workers:
                print(f"[benchmark] {case}, {workers} workers", file=sys.stderr, flush=True)
                passes = loader_passes(root, options.size, options.batch, workers, training, options.epochs)
                rows += measure(case, workers, passes, options.rounds)
        kinds = {**extra_passes(root, options.size, options.batch, 1), **clip_passes(options.batch, options.epochs)}
        rows += measure("kinds", 0, kinds, options.rounds)
        files = [path.stat().st_size for path in (root / "train").rglob("*.jpg")]
    packages = ("torch", "torchvision", "timm", "pillow")
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"CPU {cpu_name()}",
        "cores": len(os.sched_getaffinity(0)),
        "clock": "CPU time of all processes",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        **{name: getattr(options, name) for name in ("images", "size", "batch", "epochs", "rounds")},
        "kilobytes": statistics.mean(files) / 1000,
        "pixel_difference": difference,
    }
    table = markdown(rows, about)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if options.doc is not None:
        update_document(options.doc, table, "loader")
    print(f"{table}\n\nwritten: {options.out}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="JPEGs to make (default: 256)")
    parser.add_argument("--size", type=int, default=224, help="side of the network's inputs (default: 224)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4, help="epochs of one turn (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "loader-cpu.json")
    parser.add_argument("--doc", type=Path, help="Markdown file whose table is replaced")
    return reported(lambda: run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
