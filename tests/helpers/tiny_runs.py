"""Tiny training runs through the real entry point, and ways to compare what they leave behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from provscale.train import main

# Bit-identical runs need the same number of threads in every process.
os.environ["OMP_NUM_THREADS"] = "1"

# Fields of metrics.jsonl that depend on the clock.
TIMED = ("samples_per_second", "data_wait")

TINY: dict[str, Any] = {
    "data.name": "digits",
    "data.image_size": 32,
    "data.batch_size": 8,
    "data.options": "{train: 32, edits: 16, validation: 10, test: 10}",
    "model.name": "test_resnet",
    "model.options": "{drop_rate: 0.2, drop_path_rate: 0.2}",
    "synthesis.name": "cutmix",
    "guidance.alpha": 0.01,
    "optim.lr": 0.02,
    "train.epochs": 2,
    "train.self_check": "false",
    "evaluation.metrics": "[group_accuracy]",
    "tracking.wandb": "disabled",
    "tracking.images": 0,
    "tracking.gradients": "false",
}


def arguments(folder: Path, name: str = "run", **changes: Any) -> list[str]:
    """The command line of a tiny run in <folder>/<name>; `data__workers=2` stands for --data.workers 2."""
    given = {key.replace("__", "."): value for key, value in changes.items()}
    keys = {**TINY, "run.dir": folder, "run.name": name, **given}
    return [f"--{key}={value}" for key, value in keys.items()]


def train(folder: Path, name: str = "run", **changes: Any) -> Path:
    """Trains a tiny run to its end in this process; returns its folder."""
    torch.set_num_threads(1)
    assert main(arguments(folder, name, **changes)) == 0
    return folder / name


def train_in_child(words: list[str]) -> None:
    """Entry of a child process."""
    torch.set_num_threads(1)
    raise SystemExit(main(words))


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the fields that depend on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def same(first: Any, second: Any) -> bool:
    """Equality to the last bit of nested structures with tensors."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return first == second


def assert_same_run(first: Path, second: Path) -> None:
    """Parameters, BatchNorm buffers, optimizer state and metrics of two run folders are equal to the last bit."""
    state = load_file(first / "checkpoints" / "final.safetensors")
    assert any("running_mean" in name for name in state) or "test_vit" in (first / "config.yaml").read_text()
    for name in ("final.safetensors", "best.safetensors"):
        assert same(load_file(first / "checkpoints" / name), load_file(second / "checkpoints" / name)), name
    assert newest(first).name == newest(second).name
    optimizers = [torch.load(newest(folder) / "optimizer.pt", weights_only=True) for folder in (first, second)]
    assert optimizers[0]["state"], "the optimizer has momentum or moments to compare"
    assert same(*optimizers)
    assert same(load_file(newest(first) / "model.safetensors"), load_file(newest(second) / "model.safetensors"))
    assert rows(first) == rows(second)
