"""One of two processes that are given different reasons to end; writes what each scenario came to, for its rank.

Every scenario runs the real entry point, one after the other, and may differ between ranks in what it is given.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from tiny_runs import arguments

from provscale.engine import Engine
from provscale.run.checkpoint_folder import newest_first
from provscale.run.run_folder import RunFolder
from provscale.sample import Sample
from provscale.train import main

RANK = int(os.environ["RANK"])
STEPS = {"nan": 3, "stop": 2}


def at_step(number: int, action: Callable[[Sample], None]) -> mock._patch[Callable[..., object]]:
    """Lets rank 1 alone do something in the `number`-th training step."""
    original = Engine.losses
    calls = 0

    def losses(self: Engine, sample: Sample, alpha: float) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if RANK == 1 and calls == number:
            action(sample)
        return original(self, sample, alpha)

    return mock.patch.object(Engine, "losses", losses)


def nan(sample: Sample) -> None:
    sample.inputs[0] = float("nan")


def ask_to_stop(sample: Sample) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run(folder: Path, name: str, **changes: object) -> dict[str, object]:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = main(arguments(folder, name, checkpoint__every_steps=1, **changes))
    checkpoints = [path.name for path in newest_first(folder / name / "checkpoints")]
    return {"code": code, "error": errors.getvalue().strip(), "checkpoints": checkpoints}


def main_worker(folder: Path) -> None:
    results = {}
    with at_step(STEPS["nan"], nan):
        results["nan"] = run(folder, "nan")
    with at_step(STEPS["stop"], ask_to_stop):
        results["stop"] = run(folder, "stop")
    results["configs"] = run(folder, "configs", seed=RANK)
    unshared = mock.patch.object(RunFolder, "reads_token", return_value=RANK == 0)
    with unshared:
        results["unshared"] = run(folder, "unshared")
    (folder / f"rank{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main_worker(Path(sys.argv[1]))
