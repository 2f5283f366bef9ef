"""A step's losses are read when the next step is queued; the share of waiting for data."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import arguments, assert_same_run, steps_saved
from waiting_copies import Watch

from provscale.command_line import parse
from provscale.data.loader import make_loader
from provscale.errors import UserError
from provscale.run.step_report import Readout
from provscale.sample import Item
from provscale.trainer import Trainer


# ---- the trainer -------------------------------------------------------------------------------------------------
class LateTrainer(Trainer):
    """A tiny run that looks at each step only when the next one is queued, as on CUDA."""

    def __init__(self, folder: Path, name: str = "run", unread: int = 1, **changes: Any) -> None:
        super().__init__(parse(arguments(folder, name, **changes)))
        self.unread = unread


def test_the_trainers_synthesis(tmp_path: Path) -> None:
    trainer = LateTrainer(tmp_path, guidance__mask="random")
    micro = next(trainer.plan.micro_batches(0))
    (loaded,) = make_loader(trainer.train_items, [[(0, index) for index in micro.indices]], 0, False)
    with Watch() as watch:
        sample = trainer.synthesise(loaded.to("meta"), micro, 0)
    assert watch.copies.awaited == []
    assert sample.guided
    assert sample.inputs.is_meta


@pytest.fixture
def read_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens in which order: "update" of the weights, "read" of a step's numbers."""
    order: list[str] = []
    read = Readout.read

    def noted(self: Readout) -> list[float]:
        order.append("read")
        return read(self)

    monkeypatch.setattr(Readout, "read", noted)
    return order


@pytest.mark.parametrize("unread", [0, 1])
def test_a_step_is_looked_at_when_the_next_is_queued(tmp_path: Path, read_at: list[str], unread: int) -> None:
    """4 steps of one epoch. At once (`unread` 0), each is read before its update; else the next one's update waits."""
    trainer = LateTrainer(tmp_path, unread=unread, train__epochs=1)
    update = trainer.engine.update

    def noted(**options: Any) -> None:
        read_at.append("update")
        update(**options)

    trainer.engine.update = noted  # type: ignore[method-assign]
    trainer.fit()
    expected = ["read", "update"] * 4 if unread == 0 else ["update", *["read", "update"] * 3, "read"]
    assert read_at == expected


def test_looking_later_changes_nothing(tmp_path: Path) -> None:
    common = {"checkpoint__every_steps": 3, "train__accumulation": 2}
    for unread in (0, 1):
        LateTrainer(tmp_path, f"run{unread}", unread, **common).fit()
    assert_same_run(tmp_path / "run0", tmp_path / "run1")


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """lr 1e30: the loss of step 2 is not finite. Looked at late, it is still named, and found before any checkpoint."""
    for name, every, saved in (("often", 1, [1]), ("seldom", 3, [])):
        trainer = LateTrainer(tmp_path, name, optim__lr=1e30, checkpoint__every_steps=every)
        with pytest.raises(UserError, match=r"the loss is (nan|inf) at step 2, nothing of it was saved"):
            trainer.fit()
        assert steps_saved(tmp_path / name) == saved
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["kind"] == "train"] == [1]


def test_a_stop_is_noticed_one_step_later_at_most(tmp_path: Path) -> None:
    """Asked for in step 2, seen when step 3 is queued: the checkpoint is that of step 3, and 5 steps remain."""
    trainer = LateTrainer(tmp_path)
    step = trainer.optimizer_step

    def asked(*rest: Any) -> None:
        trainer.stop_request.asked = trainer.progress.step >= 1
        step(*rest)

    trainer.optimizer_step = asked  # type: ignore[method-assign]
    assert trainer.fit().step == 3
    assert steps_saved(tmp_path / "run") == [3]
    assert LateTrainer(tmp_path).fit().step == 8
    LateTrainer(tmp_path, "whole").fit()
    assert_same_run(tmp_path / "run", tmp_path / "whole")


class Slow:
    """Items that each take 20 ms to load."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        time.sleep(0.02)
        return self.source[index]


@pytest.mark.parametrize("unread", [0, 1])
def test_the_share_of_waiting_for_data(tmp_path: Path, unread: int) -> None:
    """8 items of 20 ms are waited for, 0.16 s; an update of 0.1 s and a report of 0.1 s are not.

    A busy machine makes all of them longer, none shorter: so each bound is a lower one.
    """
    trainer = LateTrainer(tmp_path, unread=unread, train__epochs=1)
    trainer.train_items.source = Slow(trainer.train_items.source)
    update, evaluate = trainer.engine.update, trainer.evaluate
    trainer.engine.update = lambda **options: (time.sleep(0.1), update(**options))[1]  # type: ignore[method-assign]
    trainer.evaluate = lambda epoch: (time.sleep(0.5), evaluate(epoch))[1]  # type: ignore[method-assign]
    log = trainer.log_reports
    trainer.log_reports = lambda: (time.sleep(0.1), log())[1]  # type: ignore[method-assign]
    trainer.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if row["kind"] == "train"]
    assert len(training) == 4
    for number, row in enumerate(training):
        seconds = 8 / row["samples_per_second"]
        waited = row["data_wait"] * seconds
        assert waited >= 0.16
        # The report of a step is part of the next one's time, as it keeps that from beginning.
        assert seconds - waited >= (0.2 if number else 0.1)
        assert 0 < row["data_wait"] < 1


def test_loading_goes_on_during_evaluation(tmp_path: Path) -> None:
    """One set of loader processes for all epochs: the first batches of epoch 2 are there when epoch 1 is evaluated.

    With a loader made anew for every epoch, the second epoch's first item would be asked for after the evaluation.
    """
    trainer = LateTrainer(tmp_path, data__workers=1)
    times = Noting(trainer.train_items.source, tmp_path / "times")
    trainer.train_items.source = times
    evaluate = trainer.evaluate
    ends: list[float] = []

    def slow(epoch: int) -> None:
        time.sleep(1.0)
        evaluate(epoch)
        ends.append(time.time())

    trainer.evaluate = slow  # type: ignore[method-assign]
    trainer.fit()
    loaded = [line.split() for line in (tmp_path / "times").read_text().splitlines()]
    assert len({process for process, _ in loaded}) == 1
    assert sum(float(moment) < ends[0] for _, moment in loaded) >= 32 + 8


class Noting(Slow):
    """Writes which process loaded an item, and when."""

    def __init__(self, source: Any, path: Path) -> None:
        super().__init__(source)
        self.path = path

    def __getitem__(self, index: int) -> Item:
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {time.time()}\n")
        return self.source[index]
