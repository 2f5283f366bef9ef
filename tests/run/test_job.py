"""What a run tells its job script, and how a killed W&B session is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from provscale.run.job import OUTCOME, tell_outcome
from provscale.tracking.wandb_session import WandbSession
from provscale.train import main


def test_outcome_is_the_main_processs_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "outcome"
    monkeypatch.delenv(OUTCOME, raising=False)
    tell_outcome("finished", tmp_path)  # no job script: nothing to do
    monkeypatch.setenv(OUTCOME, str(file))
    monkeypatch.setenv("RANK", "1")
    tell_outcome("finished", tmp_path)
    assert not file.exists()
    tell_outcome("mistake")  # may show on one node only
    assert file.read_text().split() == ["mistake"]
    monkeypatch.setenv("RANK", "0")
    tell_outcome("stopped", tmp_path)
    assert file.read_text().split() == ["stopped", str(tmp_path.resolve())]


def test_a_mistake_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OUTCOME, str(tmp_path / "outcome"))
    assert main(["--guidance.alpha", "-1"]) == 2
    assert (tmp_path / "outcome").read_text().split() == ["mistake"]


def session_folder(run: Path, name: str) -> Path:
    """What W&B makes: <run>/wandb/NAME/files."""
    files = run / "wandb" / name / "files"
    files.mkdir(parents=True)
    return files


def test_closed_session_stays(tmp_path: Path) -> None:
    first = WandbSession(tmp_path, 0)
    first.opened(session_folder(tmp_path, "offline-run-1-id"))
    first.closed(None)
    assert WandbSession(tmp_path, 10).first_step == 10
    assert (tmp_path / "wandb" / "offline-run-1-id").exists()


def test_a_session_knows_which_test_rows_are_recorded(tmp_path: Path) -> None:
    """Also after a later session was lost, whose own end nobody saw."""
    first = WandbSession(tmp_path, 0)
    assert first.tested_step is None
    first.opened(session_folder(tmp_path, "offline-run-1-id"))
    first.closed(8)
    again = WandbSession(tmp_path, 8)
    assert again.tested_step == 8
    again.opened(session_folder(tmp_path, "offline-run-2-id"))
    assert WandbSession(tmp_path, 8).tested_step == 8
    assert [path.name for path in (tmp_path / "wandb").iterdir()] == ["offline-run-1-id"]


def test_lost_sessions_are_replaced(tmp_path: Path) -> None:
    """Killed at step 10 and again at 20: the third session begins where the first did."""
    for step, name in ((5, "offline-run-1-id"), (10, "offline-run-2-id")):
        session = WandbSession(tmp_path, step)
        assert session.first_step == 5
        session.opened(session_folder(tmp_path, name))
    assert WandbSession(tmp_path, 20).first_step == 5
    assert not list((tmp_path / "wandb").iterdir())


def test_online_session_is_left_to_the_server(tmp_path: Path) -> None:
    WandbSession(tmp_path, 0).opened(session_folder(tmp_path, "run-1-id"))
    assert WandbSession(tmp_path, 10).first_step == 10
    assert (tmp_path / "wandb" / "run-1-id").exists()


def test_broken_note_is_no_obstacle(tmp_path: Path) -> None:
    for content in ("{", "[]", json.dumps({"folder": "offline-run-1"})):
        (tmp_path / "wandb_session.json").write_text(content)
        assert WandbSession(tmp_path, 7).first_step == 7


def test_every_experiment_has_a_job_script() -> None:
    """slurm/NAME.sh for configs/NAME.yaml, with the options that a resumable job needs."""
    root = ROOT
    experiments = [
        path.stem for path in (root / "configs").glob("*.yaml") if "model" in yaml.safe_load(path.read_text())
    ]
    assert "demo" in experiments
    for name in experiments:
        script = root / "slurm" / f"{name}.sh"
        assert script.exists(), f"copy slurm/demo.sh to slurm/{name}.sh"
        words = script.read_text().split()
        assert {"--requeue", "--open-mode=append", "--signal=USR1@300", f"--job-name={name}"} <= set(words)
        assert f"experiment {name}" in script.read_text()
