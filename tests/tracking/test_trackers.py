"""Trackers behind one interface: what each is given, and that one that fails never stops training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import arguments, train

from provscale.tracking import TRACKERS, TrackedRun, Tracker
from provscale.tracking.base import numbers
from provscale.tracking.metrics_file import MetricsFile, read_metrics
from provscale.tracking.terminal import ProgressBar, losses_text
from provscale.tracking.trackers import Trackers
from provscale.train import main

METHODS = ("log", "images", "summary", "sync", "close")


class Recorder(Tracker):
    """Keeps every call as (method, arguments); raises an exception in those named in `broken`."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.calls: list[tuple[Any, ...]] = []

    def called(self, name: str, *given: Any) -> None:
        self.calls.append((name, *given))
        if name == self.broken:
            raise ConnectionResetError("the server has gone\nand does not come back")

    def log(self, kind: str, row: dict[str, Any], step: int) -> None:
        self.called("log", kind, row, step)

    def images(self, name: str, images: list[Any], captions: list[str], step: int) -> None:
        self.called("images", name, images, captions, step)

    def summary(self, values: dict[str, Any]) -> None:
        self.called("summary", values)

    def sync(self) -> None:
        self.called("sync")

    def close(self, failed: bool) -> None:
        self.called("close", failed)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """A registered tracker for every method that can fail, `good`, and one that cannot be opened."""
    monkeypatch.setattr(TRACKERS, "_entries", dict(TRACKERS._entries))
    opened: dict[str, Recorder] = {}

    def build(name: str) -> Any:
        def tracker(run: TrackedRun) -> Tracker:
            assert run.step == 0
            assert run.total_steps == 2
            assert "torch" in run.environment
            opened[name] = Recorder(name)
            return opened[name]

        return tracker

    for name in ("good", *METHODS):
        TRACKERS.register(name)(build(name))

    @TRACKERS.register("closed")
    def closed(run: TrackedRun) -> Tracker:
        raise ImportError("No module named 'cloud'")

    return opened


def test_failing_trackers_do_not_stop_training(
    tmp_path: Path, recorders: dict[str, Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["closed", *METHODS, "good"]
    run = train(tmp_path, synthesis__name="edited", train__max_steps=2, tracking__images=1, tracking__gradients="true",
                tracking__trackers=f"[{', '.join(names)}]")  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tracking:")]
    reasons = {"closed": "ImportError: No module named 'cloud'"}
    reasons |= dict.fromkeys(METHODS, "ConnectionResetError: the server has gone")
    assert sorted(lines) == sorted(
        f"tracking: {name} failed ({reason}); metrics.jsonl has every row" for name, reason in reasons.items()
    )
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["kind"] for row in rows].count("train") == 2
    good = recorders["good"].calls
    kinds = [f"test_{row['at']}" if row["kind"] == "test" else row["kind"] for row in rows]
    assert [call[1:] for call in good if call[0] == "log"] == [
        (kind, row, row["step"]) for kind, row in zip(kinds, rows, strict=True)
    ]
    assert {"train", "gradients", "validation", "test_best", "test_last"} == set(kinds)
    (pictures,) = [call for call in good if call[0] == "images"]
    assert [image.shape for image in pictures[2]] == [(32, 3 * 32, 3)]
    assert pictures[4] == 2
    (summary,) = [call[1] for call in good if call[0] == "summary"]
    assert summary["accuracy"] == json.loads((run / "summary.json").read_text())["validation"]["accuracy"]
    assert good[-1] == ("close", False)
    for name in METHODS[:-1]:  # after its first failure a tracker is only closed
        names_called = [call[0] for call in recorders[name].calls]
        assert names_called.index(name) == len(names_called) - 2
        assert recorders[name].calls[-1] == ("close", True)


def test_trackers_know_of_a_failed_run(
    tmp_path: Path, recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provscale.run.run_folder.RunFolder.finish", lambda *rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, train__max_steps=2, tracking__trackers="[close, good]")
    assert recorders["good"].calls[-1] == ("close", True)


def test_full_disk_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """metrics.jsonl is what everything else relies on: without it, training ends."""
    opened = MetricsFile.__init__

    def on_a_full_disk(self: MetricsFile, path: Path, resume_step: int) -> None:
        opened(self, path, resume_step)
        self.file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115

    monkeypatch.setattr(MetricsFile, "__init__", on_a_full_disk)
    assert main(arguments(tmp_path, train__max_steps=2)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "provscale:" in line]
    assert "metrics.jsonl: cannot be written (No space left on device); free space and start again" in line


def test_unknown_tracker_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, tracking__trackers="[tensorbord]")) == 2
    assert "tracking.trackers: unknown name 'tensorbord', did you mean 'tensorboard'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_only_trackers_of_every_step_get_sparse_rows() -> None:
    class EveryStep(Recorder):
        every_step = True

    trackers, usual, every = Trackers(), Recorder(), EveryStep()
    trackers.add("usual", usual)
    trackers.add("every", every)
    for step in range(1, 5):
        trackers.log("train", {"kind": "train", "step": step}, sparse=step % 2 == 1)
    assert [call[3] for call in usual.calls] == [2, 4]
    assert [call[3] for call in every.calls] == [1, 2, 3, 4]


def test_numbers_of_a_row() -> None:
    row = {"kind": "validation", "step": 3, "accuracy": 50.0, "loss_area": float("nan"), "name": "x", "done": True}
    found = numbers("validation", row)
    assert found.pop("validation/loss_area") != 0
    assert found == {"validation/step": 3, "validation/accuracy": 50.0}


def test_losses_are_shown_by_name() -> None:
    row = {"kind": "train", "loss": 1.3, "loss_cls": 1.0, "loss_guidance": 2.0, "loss_area": 0.1, "lr": 0.5}
    assert losses_text(row) == "loss 1.3000 = cls 1.0000 + alpha x guidance 2.0000 + area 0.1000"


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A line at the first and the last step, as the others come within 15 s; evaluations have lines of their own."""
    bar = ProgressBar(total=4, done=1)
    for step in (2, 3, 4):
        row = {"epoch": 1, "loss": 0.5, "loss_cls": 0.5, "samples_per_second": 8.0}
        bar.log("train", row, step)
    bar.log("validation", {"epoch": 1, "accuracy": 50.0}, 4)
    bar.close(failed=False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 2/4", "step 4/4"]
    assert "epoch 1  loss 0.5000 = cls 0.5000  8.0 samples/s" in lines[1]
