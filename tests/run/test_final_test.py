"""The end of a run: test metrics of the best and of the last epoch, whatever interrupts them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_runs import arguments, assert_same_run, rows, same, train

from provscale.command_line import parse
from provscale.run import final_test
from provscale.run.job import OUTCOME
from provscale.train import main
from provscale.trainer import Trainer

# A metric that no two networks have in common; its best epoch is not the last.
EARLY_BEST = {
    "evaluation__best": "gradient_energy",
    "evaluation__metrics": "[gradient_energy, group_accuracy]",
    "train__epochs": 3,
}


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def test_network_has_its_final_weights_again(tmp_path: Path) -> None:
    """Parameters, BatchNorm statistics and mode; so somebody can go on with the trainer's network."""
    trainer = Trainer(parse(arguments(tmp_path, **EARLY_BEST)))
    progress = trainer.fit()
    assert progress.best_epoch < 3, "else no other weights are loaded"
    assert trainer.finished
    assert same(trainer.engine.network_state(), load_file(tmp_path / "run" / "checkpoints" / "final.safetensors"))
    assert not same(trainer.engine.network_state(), load_file(tmp_path / "run" / "checkpoints" / "best.safetensors"))
    assert trainer.step.training


@pytest.mark.parametrize("after", [0, 1], ids=["before the last epoch's", "before the best epoch's"])
def test_stopped_while_test_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that is told to end there starts again, and ends with the same files as an undisturbed one."""
    whole = train(tmp_path, "whole", **EARLY_BEST)
    monkeypatch.setenv(OUTCOME, str(tmp_path / "outcome"))
    calls = 0

    def evaluate(*given: Any, **named: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given, **named)

    original = final_test.evaluate
    monkeypatch.setattr(final_test, "evaluate", evaluate)
    finish = Trainer.finish
    if after == 0:
        monkeypatch.setattr(Trainer, "finish", lambda self: (os.kill(os.getpid(), signal.SIGTERM), finish(self))[1])
    assert main(arguments(tmp_path, "parts", **EARLY_BEST)) == 0
    assert calls == after
    assert (tmp_path / "outcome").read_text().split() == ["stopped", str(tmp_path / "parts")]
    assert "training has ended, the test split is evaluated when it is started again" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "summary.json").exists()
    monkeypatch.setattr(Trainer, "finish", finish)
    monkeypatch.setattr(final_test, "evaluate", original)
    assert main(arguments(tmp_path, "parts", **EARLY_BEST)) == 0
    assert (tmp_path / "outcome").read_text().split() == ["finished", str(tmp_path / "parts")]
    assert_same_run(whole, tmp_path / "parts")
    assert summary(whole)["test"] == summary(tmp_path / "parts")["test"]


def test_without_validation_a_run_says_that_it_selects_on_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line and in summary.json. What the epochs measured on test is not measured again."""
    again: list[int] = []
    monkeypatch.setattr(final_test, "evaluate", lambda *given: again.append(1))
    run = train(tmp_path, data__validation_share=0, **EARLY_BEST)
    lines = capsys.readouterr().err.splitlines()
    assert (
        len([line for line in lines if "the best epoch is chosen on test, so its metrics are optimistic" in line]) == 1
    )
    selecting = [row for row in rows(run) if row["kind"] == "validation"]
    assert {row["split"] for row in selecting} == {"test"}
    found = summary(run)
    assert (found["selected_on"], found["validation"]) == ("test", {})
    assert found["test"]["best"].items() <= selecting[found["best_epoch"] - 1].items()
    assert found["test"]["last"].items() <= selecting[-1].items()
    assert not again


def test_best_epoch_that_is_the_last_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = final_test.evaluate
    monkeypatch.setattr(
        final_test, "evaluate", lambda *given, **named: (calls.append(given[2]), original(*given, **named))[1]
    )
    run = train(tmp_path, train__epochs=1)
    assert calls == ["test"]
    assert summary(run)["test"]["best"] == summary(run)["test"]["last"]


def test_checkpoint_beyond_the_end_of_a_run_finishes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that said `stopped` would be started again for ever. No epoch of this run is the best one."""
    old = train(tmp_path, "old")
    monkeypatch.setenv(OUTCOME, str(tmp_path / "outcome"))
    run = train(tmp_path, "new", train__max_steps=3, checkpoint__resume=old / "checkpoints" / "step-00000008")
    assert (tmp_path / "outcome").read_text().split() == ["finished", str(run)]
    found = summary(run)
    assert (found["steps"], found["best_epoch"], found["test"]["best"], found["validation"]) == (8, 0, {}, {})
    assert found["test"]["last"] == summary(old)["test"]["last"]
    assert same(load_file(run / "checkpoints" / "final.safetensors"), load_file(old / "checkpoints/final.safetensors"))


def test_best_weights_that_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, **EARLY_BEST)
    (run / "checkpoints" / "best.safetensors").unlink()
    capsys.readouterr()
    assert main(arguments(tmp_path, **EARLY_BEST)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{run}/checkpoints/best.safetensors cannot be read" in error


def test_self_check_without_synthesis_loads_one_micro_batch(tmp_path: Path) -> None:
    """Nothing is ever guided there, so there is nothing to look for."""
    words = arguments(tmp_path, synthesis__name="none", guidance__alpha=0, train__self_check="true")
    trainer = Trainer(parse(words))
    loaded: list[int] = []
    source = trainer.train_items.source

    class Noted:
        def __len__(self) -> int:
            return len(source)

        def label(self, index: int) -> int:
            return source.label(index)

        def __getitem__(self, index: int) -> Any:
            loaded.append(index)
            return source[index]

    trainer.train_items.source = Noted()
    trainer.progress = trainer.checkpointer.resume()
    trainer.check()
    assert len(loaded) == 8
