"""Resuming: what an interrupted run leaves behind, and that going on from there changes not one bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from tiny_runs import arguments, assert_same_run, newest, rows, steps_saved, train, train_in_child

from provscale.run.checkpoint_folder import MARKER, damage
from provscale.train import main
from provscale.trainer import Trainer


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sends this process a real signal once a run has done so many steps."""
    original = Trainer.optimizer_step

    def request(step: int, number: int = signal.SIGTERM) -> None:
        def optimizer_step(self: Trainer, *rest: Any) -> None:
            original(self, *rest)
            if self.progress.step == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Trainer, "optimizer_step", optimizer_step)

    yield request
    monkeypatch.undo()


CASES = {
    "mixing": {},
    "mixing, workers, accumulation": {"data__workers": 2, "train__accumulation": 2},
    "adamw, half mixed": {"optim__name": "adamw", "optim__lr": 1e-3, "synthesis__probability": 0.5},
    "edits, masks moved": {"synthesis__name": "edited", "guidance__mask": "random", "optim__schedule": "cosine"},
    "alpha by gradients": {"guidance__alpha_rule": "gradient_ratio", "guidance__alpha_steps": 7},
    "self-check, pictures, sparse log": {"train__self_check": "true", "tracking__images": 2, "tracking__log_every": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_stop_signal_and_resume_in_the_middle_of_an_epoch(tmp_path: Path, stop_after: Any, case: str) -> None:
    """SIGTERM after 1-based step 5: checkpoint at the next step (6, not an epoch's end), code 0; then to the end."""
    whole = train(tmp_path, "whole", **CASES[case])
    stop_after(5)
    assert main(arguments(tmp_path, "parts", **CASES[case])) == 0
    parts = tmp_path / "parts"
    assert steps_saved(parts)[-1] == 6
    assert not (parts / "summary.json").exists()
    assert not (parts / "checkpoints" / "final.safetensors").exists()
    train(tmp_path, "parts", **CASES[case])
    assert_same_run(whole, parts)


def test_slurm_warning_signal_does_the_same(tmp_path: Path, stop_after: Any) -> None:
    stop_after(2, signal.SIGUSR1)
    assert main(arguments(tmp_path)) == 0
    assert steps_saved(tmp_path / "run") == [3]


def wait_for(condition: Any, process: Any, pause: float) -> bool:
    """True when `condition` holds, False when the process ended before."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if condition():
            return True
        if not process.is_alive():
            return False
        time.sleep(pause)
    raise AssertionError("nothing happened for two minutes")


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """SIGKILL ten times, half of them while a checkpoint is being written; then the run goes on to its end."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # one with the trainer's imports done starts faster
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "provscale.trainer"])
    changes = {"train__epochs": 10, "checkpoint__every_steps": 1, "evaluation__every_epochs": 5}

    def start(name: str) -> Any:
        process = context.Process(target=train_in_child, args=(arguments(tmp_path, name, **changes),))
        process.start()
        return process

    undisturbed = start("undisturbed")
    undisturbed.join(300)
    assert undisturbed.exitcode == 0
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    draw = random.Random(0)
    during_save = kills = 0
    while kills < 10:
        process = start("run")
        before = steps_saved(run)[-1:]
        assert wait_for(lambda before=before: steps_saved(run)[-1:] != before, process, 0.002), "ended before its kill"
        if kills % 2:
            assert wait_for(lambda: any(checkpoints.glob(".saving-step-*")), process, 0.0)
        else:
            time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        during_save += any(checkpoints.glob(".saving-*"))
        assert not damage(newest(run)), "a checkpoint that has its name is complete"
        kills += 1
    last = start("run")
    last.join(300)
    assert last.exitcode == 0
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    print(f"kills: {kills}, of which during a save: {during_save}")
    assert during_save >= 2
    assert not list(checkpoints.glob(".saving-*"))
    assert_same_run(tmp_path / "undisturbed", run)


@pytest.mark.slow
def test_stop_signal_to_the_whole_process_group(tmp_path: Path) -> None:
    """SLURM signals every process of a job, loader processes too: the batches they hold must not be lost."""
    changes = {"data__workers": 2, "train__epochs": 40}
    words = arguments(tmp_path, **changes)
    process = subprocess.Popen(
        [sys.executable, "provscale/train.py", *words], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
    )  # fmt: skip
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert f"checkpoint of step {steps_saved(tmp_path / 'run')[-1]} is written" in errors
    assert rows(tmp_path / "run")[-1]["step"] == steps_saved(tmp_path / "run")[-1]


def test_damaged_newest_checkpoint_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One flipped bit in the newest: a warning names it, the one before is used, the result is the same."""
    whole = train(tmp_path, "whole", checkpoint__every_steps=2, checkpoint__keep=3)
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    (parts / "config.yaml").write_text((parts / "config.yaml").read_text().replace("name: whole", "name: parts"))
    victim = newest(parts) / "model.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    (parts / "checkpoints" / "final.safetensors").unlink()
    capsys.readouterr()
    train(tmp_path, "parts", checkpoint__every_steps=2, checkpoint__keep=3)
    warning = capsys.readouterr().err
    assert f"{victim.parent} is skipped: model.safetensors has another content" in warning.replace("\n", " ")
    assert_same_run(whole, parts)


def test_a_damaged_checkpoint_does_not_crowd_out_good_ones(tmp_path: Path, stop_after: Any) -> None:
    """With keep 1 the damaged step 8 must not count as the newest while steps 1 to 7 are written again."""
    run = train(tmp_path, checkpoint__keep=1)
    (newest(run) / MARKER).unlink()
    stop_after(2)
    assert main(arguments(tmp_path, checkpoint__keep=1)) == 0
    assert steps_saved(run) == [3]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    assert steps_saved(train(tmp_path, checkpoint__every_steps=2, checkpoint__keep=3)) == [4, 6, 8]
    assert steps_saved(train(tmp_path, "epochs")) == [4, 8]


def test_going_back_to_an_older_checkpoint(tmp_path: Path) -> None:
    """A named older checkpoint of the same run: later ones and their rows are replaced, with the same numbers."""
    run = train(tmp_path, checkpoint__every_steps=3, checkpoint__keep=5)
    expected = rows(run)
    train(tmp_path, checkpoint__every_steps=4, checkpoint__keep=5, checkpoint__resume=run / "checkpoints/step-00000003")
    assert rows(run) == expected
    assert steps_saved(run) == [3, 4, 8]


def test_branching_off_another_run(tmp_path: Path) -> None:
    """The optimizer settings are those of the new config; the best epoch is counted anew, as its weights are here."""
    train(tmp_path, "old", optim__weight_decay=0.0)
    old = tmp_path / "old" / "checkpoints" / "step-00000004"
    run = train(tmp_path, "new", optim__weight_decay=0.5, checkpoint__resume=old)
    straight = train(tmp_path, "same", checkpoint__resume=old)
    assert [row["step"] for row in rows(run) if row["kind"] == "train"] == [5, 6, 7, 8]
    assert (run / "checkpoints" / "best.safetensors").exists()
    losses = [[row["loss"] for row in rows(folder) if row["kind"] == "train"] for folder in (straight, run)]
    assert losses[0][0] == losses[1][0]
    assert losses[0][-1] != losses[1][-1], "weight decay of the new config acts"


def test_finished_run_started_again_changes_nothing(tmp_path: Path) -> None:
    run = train(tmp_path)
    before = rows(run), (run / "checkpoints" / "final.safetensors").read_bytes()
    train(tmp_path)
    assert (rows(run), (run / "checkpoints" / "final.safetensors").read_bytes()) == before


def test_branch_started_again_goes_on_with_its_own_progress(
    tmp_path: Path, stop_after: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A requeued job runs the same command: a named checkpoint begins the run, and does not throw it back."""
    train(tmp_path, "old")
    old = tmp_path / "old" / "checkpoints" / "step-00000004"
    stop_after(5)  # agreed on in the step after
    run = train(tmp_path, "new", checkpoint__resume=old)
    assert steps_saved(run) == [6]
    train(tmp_path, "new", checkpoint__resume=old)
    assert "step 6" in capsys.readouterr().err.replace("\n", " ")
    assert [row["step"] for row in rows(run) if row["kind"] == "train"] == [5, 6, 7, 8]
