"""metrics.jsonl and W&B: what is recorded, and what happens after a kill or without a login."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_runs import arguments, rows, train

from provscale.tracking.metrics_file import MetricsFile, read_metrics
from provscale.tracking.wandb import has_wandb_login
from provscale.trainer import Trainer


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 0)
    for step in range(1, 5):
        first.log("train", {"kind": "train", "step": step}, step)
    first.close(failed=True)
    resumed = MetricsFile(path, 2)
    resumed.log("train", {"kind": "train", "step": 3}, 3)
    resumed.close(failed=False)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_line_cut_off_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    MetricsFile(path, 9).close(failed=False)
    assert path.read_text() == '{"step": 1}\n'


def test_sparse_rows_include_the_last(tmp_path: Path) -> None:
    run = train(tmp_path, tracking__log_every=3)
    assert [row["step"] for row in rows(run) if row["kind"] == "train"] == [3, 6, 8]


def test_login_is_looked_up_without_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    assert not has_wandb_login()
    file.write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    file.chmod(0o600)
    assert has_wandb_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_login()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_login()


@pytest.fixture
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def sessions(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


@pytest.mark.usefixtures("no_login")
def test_online_without_login_records_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, tracking__wandb="online", tracking__images=2, train__max_steps=1)
    hint = " ".join(capsys.readouterr().err.split())
    assert "no login" in hint
    assert "wandb sync" in hint
    (session,) = sessions(run)
    (recorded,) = session.glob("*.wandb")
    assert recorded.stat().st_size > 1000
    assert list(session.rglob("*.png")), "the pictures are recorded"
    assert not (run / "wandb" / "run").exists()


@pytest.mark.usefixtures("no_login")
def test_a_server_that_cannot_be_reached_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Port 9 of this machine refuses: after the time allowed, everything is recorded offline."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("provscale.tracking.wandb.WANDB_TIMEOUT", 2)
    run = train(tmp_path, tracking__wandb="online", train__max_steps=1)
    assert "cannot be reached" in capsys.readouterr().err
    assert len(sessions(run)) == 1


class Recorder:
    """Stands in for W&B's run: keeps what it is given."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str | None]] = []
        self.arguments: dict[str, Any] = {}


@pytest.mark.usefixtures("no_login")
def test_what_is_sent_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spied on W&B's own run object: rows as in metrics.jsonl, global_step as axis, one id over both parts."""
    import wandb

    recorder = Recorder()
    original_init, original_log = wandb.init, wandb.Run.log
    original_axis = wandb.Run.define_metric

    def init(*rest: Any, **given: Any) -> Any:
        recorder.arguments = given
        return original_init(*rest, **given)

    def log(self: Any, data: dict[str, Any], *rest: Any, **given: Any) -> None:
        recorder.logged.append(dict(data))
        original_log(self, data, *rest, **given)

    def axis(self: Any, name: str, step_metric: str | None = None, **given: Any) -> Any:
        recorder.axes.append((name, step_metric))
        return original_axis(self, name, step_metric=step_metric, **given)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb.Run, "log", log)
    monkeypatch.setattr(wandb.Run, "define_metric", axis)
    run = train(tmp_path, tracking__wandb="offline", tracking__images=2, run__group="demo", run__tags="[a, b]")
    identity = recorder.arguments["id"]
    assert recorder.arguments["mode"] == "offline"
    assert recorder.arguments["group"] == "demo"
    assert {"a", "b"} <= set(recorder.arguments["tags"])
    assert ("*", "global_step") in recorder.axes
    losses = {row["global_step"]: row["train/loss"] for row in recorder.logged if "train/loss" in row}
    assert losses == {row["step"]: row["loss"] for row in rows(run) if row["kind"] == "train"}
    accuracy = {
        row["global_step"]: row["validation/accuracy"] for row in recorder.logged if "validation/accuracy" in row
    }
    assert accuracy == {row["step"]: row["accuracy"] for row in rows(run) if row["kind"] == "validation"}
    pictures = [row for row in recorder.logged if any(isinstance(value, list) for value in row.values())]
    assert [row["global_step"] for row in pictures] == [4, 8]
    train(tmp_path, tracking__wandb="offline", run__group="demo", run__tags="[a, b]")
    assert recorder.arguments["id"] == identity
    assert recorder.arguments["resume"] == "allow"
    # Started again when it had finished: its test rows are there once.
    tested = [row["global_step"] for row in recorder.logged if "test_last/accuracy" in row]
    assert tested == [8]


@pytest.mark.usefixtures("no_login")
def test_wandb_without_its_helper_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It dies of the SIGTERM that SLURM sends to a job: training goes on, and the session is replaced on resume."""
    original = Trainer.optimizer_step

    def optimizer_step(self: Trainer, *rest: Any) -> None:
        original(self, *rest)
        if self.progress.step == 2:
            (helper,) = [child for child in psutil.Process().children(recursive=True) if "wandb-core" in child.name()]
            helper.kill()
            helper.wait(30)

    monkeypatch.setattr(Trainer, "optimizer_step", optimizer_step)
    run = train(tmp_path, tracking__wandb="offline", train__max_steps=4)
    assert capsys.readouterr().err.count("tracking: wandb failed (") == 1
    assert [row["step"] for row in rows(run) if row["kind"] == "train"] == [1, 2, 3, 4]
    assert json.loads((run / "wandb_session.json").read_text())["first_step"] == 0


def test_disabled_means_nothing_of_wandb(tmp_path: Path) -> None:
    run = train(tmp_path, train__max_steps=1)
    assert not (run / "wandb").exists()
    assert json.loads((run / "summary.json").read_text())["steps"] == 1
    assert "--tracking.wandb=disabled" in arguments(tmp_path)
