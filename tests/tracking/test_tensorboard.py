"""TensorBoard, read back with its own reader: the rows of metrics.jsonl, whatever happened on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PageAccumulator
from tiny_runs import arguments, train

from provscale.config import Config, RunConfig
from provscale.tracking import TrackedRun
from provscale.tracking.metrics_file import NAME, read_metrics
from provscale.tracking.tensorboard import TensorBoardTracker
from provscale.trainer import Trainer

# Without a limit, or the reader would keep a sample of the points.
EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}


def reader(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance=EVERYTHING).Reload()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every point, by tag."""
    content = reader(run)
    return {tag: [(e.step, e.value) for e in content.Scalars(tag)] for tag in content.Tags()["scalars"]}


def expected(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.jsonl; TensorBoard keeps FP32, and test metrics come one step after the last."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(run / NAME):
        kind, step = (f"test_{row['at']}", row["step"] + 1) if row["kind"] == "test" else (row["kind"], row["step"])
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                points.setdefault(f"{kind}/{name}", []).append((step, float(np.float32(value))))
    return points


TENSORBOARD: dict[str, Any] = {"tracking__trackers": "[tensorboard]", "checkpoint__every_steps": 2}


def test_every_row_and_picture_is_recorded(tmp_path: Path) -> None:
    run = train(tmp_path, **TENSORBOARD, synthesis__name="edited", tracking__images=2, tracking__wandb="offline")
    assert scalars(run) == expected(run)
    assert {"train/loss", "train/loss_cls", "train/loss_guidance", "train/lr"} <= scalars(run).keys()
    content = reader(run)
    pictures = content.Tags()["images"]
    assert len(pictures) == 2
    epochs = [row["step"] for row in read_metrics(run / NAME) if row["kind"] == "validation"]
    for tag in pictures:
        assert [(image.step, image.width, image.height) for image in content.Images(tag)] == [
            (step, 3 * 32, 32) for step in epochs
        ]
    (text,) = content.Tensors("config/text_summary")
    assert "alpha: 0.01" in text.tensor_proto.string_val[0].decode()
    assert not (run / "wandb").exists(), "W&B is not among the trackers"


def test_a_finished_run_that_is_started_again_changes_nothing(tmp_path: Path) -> None:
    run = train(tmp_path, **TENSORBOARD, train__max_steps=3)
    train(tmp_path, **TENSORBOARD, train__max_steps=3)
    assert len(list((run / "tensorboard").glob("events.*"))) == 2
    assert scalars(run) == expected(run)
    best = json.loads((run / "summary.json").read_text())["validation"]["accuracy"]
    # What TensorBoard's pages read; the other reader never purges texts.
    page = PageAccumulator(str(run / "tensorboard"), tensor_size_guidance={"text": 0}).Reload()
    (text,) = page.Tensors("summary/text_summary")
    assert f"| accuracy | {best} |" in text.tensor_proto.string_val[0].decode()


def fail_after_step_5(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    original = Trainer.optimizer_step

    def optimizer_step(self: Trainer, *rest: Any) -> None:
        original(self, *rest)
        if self.progress.step == 5:
            raise RuntimeError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "optimizer_step", optimizer_step)
        with pytest.raises(RuntimeError, match="gone"):
            train(folder, **changes)


def test_resumed_after_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint is of step 4, and step 5 was recorded: it is computed, and recorded, again."""
    fail_after_step_5(tmp_path, monkeypatch, **TENSORBOARD)
    assert [step for step, _ in scalars(tmp_path / "run")["train/loss"]] == [1, 2, 3, 4, 5]
    run = train(tmp_path, **TENSORBOARD)
    assert [step for step, _ in scalars(run)["train/loss"]] == list(range(1, 9))
    assert scalars(run) == expected(run)


def test_resumed_after_a_kill(tmp_path: Path) -> None:
    """What a checkpoint counts on is in the event file, though a killed process writes nothing at its end."""
    script = (
        "import os, signal, sys; from provscale.trainer import Trainer; from provscale.train import main\n"
        "original = Trainer.optimizer_step\n"
        "def optimizer_step(self, *rest):\n"
        "    if self.progress.step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    original(self, *rest)\n"
        "Trainer.optimizer_step = optimizer_step\n"
        "main(sys.argv[1:])"
    )
    words = arguments(tmp_path, **TENSORBOARD)
    killed = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, check=False, capture_output=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert {1, 2, 3, 4} <= {step for step, _ in scalars(tmp_path / "run")["train/loss"]}
    run = train(tmp_path, **TENSORBOARD)
    assert scalars(run) == expected(run)


def test_switched_on_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was started without TensorBoard gets its earlier rows, too."""
    fail_after_step_5(tmp_path, monkeypatch, checkpoint__every_steps=2)
    run = train(tmp_path, **TENSORBOARD)
    assert [step for step, _ in scalars(run)["train/loss"]] == list(range(1, 9))
    assert scalars(run) == expected(run)


def open_at(folder: Path, step: int) -> TensorBoardTracker:
    time.sleep(1.1)  # sessions are seconds apart, and their files are named by the second
    return TensorBoardTracker(TrackedRun(Config(run=RunConfig(dir=str(folder))), step, 10, {}))


def row(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": loss}


def test_sessions_that_ended_badly(tmp_path: Path) -> None:
    """Lost before the first checkpoint, lost after one, failed in between, and resumed from further back."""
    log = tmp_path / "run" / NAME
    log.parent.mkdir()

    def checkpoint(rows: list[dict[str, Any]]) -> None:
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))

    checkpoint([])
    first = open_at(tmp_path, 0)
    first.log("train", row(1, 0.1), 1)
    first.writer.flush()  # on the disk, but no checkpoint knows of it
    second = open_at(tmp_path, 0)
    for step in range(1, 5):
        second.log("train", row(step, 0.2), step)
    checkpoint([row(step, 0.2) for step in range(1, 5)])
    second.sync()
    second.log("train", row(5, 0.2), 5)
    second.writer.flush()
    # Training itself went on to a checkpoint of step 8: TensorBoard lacks rows that metrics.jsonl has.
    checkpoint([row(step, 0.2) for step in range(1, 5)] + [row(step, 0.3) for step in range(5, 9)])
    third = open_at(tmp_path, 8)
    third.close(failed=True)
    assert scalars(tmp_path / "run")["train/loss"] == [
        (step, pytest.approx(0.2 if step < 5 else 0.3)) for step in range(1, 9)
    ]
    # Two checkpoints were damaged: training starts at step 3 again.
    checkpoint([row(step, 0.2) for step in range(1, 4)])
    fourth = open_at(tmp_path, 3)
    fourth.log("train", row(4, 0.4), 4)
    fourth.close(failed=False)
    assert scalars(tmp_path / "run")["train/loss"] == [
        (step, pytest.approx(0.2 if step < 4 else 0.4)) for step in range(1, 5)
    ]
