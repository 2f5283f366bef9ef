"""Starts `engine_worker.py` under an engine, once a process of pytest: what reads its results is in test_engines.py."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from paths import ROOT

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
TASKS = [
    "parity",
    "channels_last",
    "checked",
    "split",
    "clipped",
    "lengths",
    "refusals",
    "measure",
    "state",
    "other_weights",
    "trainer",
]


@functools.cache
def scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="engines-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def command(engine: str, folder: Path, *tasks: str, launch: tuple[str, ...] = ()) -> list[str]:
    """As a user would start it; `one` is a single process without a launcher."""
    worker = [str(ROOT / "tests" / "helpers" / "engine_worker.py"), str(folder), *tasks]
    if engine == "one":
        return [sys.executable, *worker]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"launch/cpu/{engine}.yaml"]
    return [*launcher, *launch, *worker]


def environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", **os.environ}


def run(engine: str, folder: Path, *tasks: str, launch: tuple[str, ...] = ()) -> None:
    done = subprocess.run(
        command(engine, folder, *tasks, launch=launch), cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@functools.cache
def finished(engine: str) -> Path:
    """The folder of an engine's results; `one` is the reference process."""
    folder = scratch() / engine
    folder.mkdir()
    tasks = ["parity", "checked", "clipped", "lengths", "trainer", "exact"] if engine == "one" else list(TASKS)
    own = {"ddp": ["reduced"], "fsdp2": ["skipped"]}.get(engine, [])
    run(engine, folder, *tasks, *own, *(["default_clipping"] if engine.startswith("zero") else []))
    return folder


@functools.cache
def result(engine: str, task: str) -> Any:
    return torch.load(finished(engine) / f"{task}.pt", weights_only=False)
