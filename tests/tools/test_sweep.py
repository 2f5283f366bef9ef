"""Sweep files without W&B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from finished_runs import write_finished

from provscale.command_line import parse
from provscale.errors import UserError
from tools import reproduce
from tools.plan import Costs, StepCost
from tools.sweep import at_the_edge, best_point, fine_stage, read_sweep

SWEEP: dict[str, Any] = {
    "program": "provscale/train.py", "project": "provscale", "name": "small-coarse", "method": "grid",
    "metric": {"name": "validation/worst_group", "goal": "maximize"},
    "parameters": {
        "optim.lr": {"values": [0.001, 0.01]}, "guidance.alpha": {"values": [1.0, 0.1, 10.0]},
        "run.group": {"value": "g"}, "tracking.wandb": {"value": "online"},
    },
    "command": ["${env}", "accelerate", "launch", "${program}", "--cfg", "configs/demo.yaml", "--data.root",
                "${envvar:SOME_ROOT}", "${args}"],
}  # fmt: skip


def written(folder: Path, file: str = "small_coarse.yaml", **changes: Any) -> Path:
    path = folder / file
    path.write_text(yaml.safe_dump(SWEEP | changes))
    return path


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_ROOT", "/data")


def test_the_grid_is_in_the_order_of_the_server(tmp_path: Path) -> None:
    """W&B's `sweeps.grid_search` (0.3.0) goes through the product of the values, parameters by name."""
    sweep = read_sweep(written(tmp_path))
    assert sweep.words == ["--cfg", "configs/demo.yaml", "--data.root", "/data"]
    assert [tuple(point.items()) for point in sweep.points] == [
        (("guidance.alpha", alpha), ("optim.lr", rate), ("run.group", "g"))
        for alpha in (1.0, 0.1, 10.0)
        for rate in (0.001, 0.01)
    ]
    assert [sweep.label(point) for point in sweep.points[:2]] == ["alpha1-lr0.001", "alpha1-lr0.01"]


def test_the_best_by_validation(tmp_path: Path) -> None:
    """By the mean over seeds, the first of equal ones, in the direction that the file says; what is missing is not."""
    values = {"alpha1-lr0.001": [60.0, 70.0], "alpha1-lr0.01": [65.0], "alpha0.1-lr0.001": [90.0, 20.0], "x": []}
    sweep = read_sweep(written(tmp_path))
    assert best_point(sweep, values) == {"guidance.alpha": 1.0, "optim.lr": 0.001}
    less = read_sweep(written(tmp_path, metric={"name": "validation/loss", "goal": "minimize"}))
    assert best_point(less, values) == {"guidance.alpha": 0.1, "optim.lr": 0.001}
    assert best_point(sweep, {"alpha1-lr0.001": []}) is None
    assert at_the_edge(sweep, {"guidance.alpha": 1.0, "optim.lr": 0.001}) == ["optim.lr"]


def test_the_fine_stage_is_moved_to_the_best_point(tmp_path: Path) -> None:
    parameters = {"optim.lr": {"values": [0.005, 0.01, 0.02]}, "guidance.alpha": {"values": [1.5, 3.0, 6.0]}}
    written(tmp_path, "small_fine.yaml", parameters=parameters, name="small-fine")
    text = fine_stage(read_sweep(written(tmp_path)), {"guidance.alpha": 0.1, "optim.lr": 0.001})
    assert text is not None
    (tmp_path / "new.yaml").write_text(text)
    fine = read_sweep(tmp_path / "new.yaml")
    assert fine.name == "small-fine"
    assert fine.points[0] == {"guidance.alpha": 0.05, "optim.lr": 0.0005}
    assert fine.points[4] == {"guidance.alpha": 0.1, "optim.lr": 0.001}
    assert fine.points[8] == {"guidance.alpha": 0.2, "optim.lr": 0.002}
    assert fine_stage(fine, {}) is None


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, message in (
        ({"method": "bayes"}, "method bayes, program provscale/train.py and metric validation/worst_group"),
        ({"command": ["x"]}, r"is no sweep file \(ValueError"),
        ({"metric": {"name": "validation/a", "goal": "more"}}, r"is no sweep file \(KeyError: 'more'\)"),
    ):
        with pytest.raises(UserError, match=message):
            read_sweep(written(tmp_path, **changes))
    with pytest.raises(UserError, match=r"nothing\.yaml is no sweep file"):
        read_sweep(tmp_path / "nothing.yaml")
    monkeypatch.delenv("SOME_ROOT")
    with pytest.raises(UserError, match=r"needs the variable SOME_ROOT; export SOME_ROOT=\.\.\."):
        read_sweep(written(tmp_path))


def test_a_whole_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On validation 10 below alpha + lr; learning rate 0.01 diverges."""
    configs = []

    def launch(name: str, words: list[str], folder: Path) -> Path:
        config = parse([*words, "--run.dir", str(folder), "--run.name", name])
        configs.append(config)
        if config.optim.lr == 0.01 and config.guidance.alpha == 10:
            raise UserError("the loss is nan")
        value = config.guidance.alpha + config.optim.lr + config.seed
        return write_finished(folder, config, 4, {"worst_group": value})

    monkeypatch.setattr(reproduce, "launch", launch)
    monkeypatch.setattr(Costs, "measured", lambda self, config, guided: StepCost(1e9, 1.0))
    parameters = {"optim.lr": {"values": [0.01, 0.02, 0.04]}, "guidance.alpha": {"values": [0.5, 1.0, 2.0]}}
    written(tmp_path, "small_fine.yaml", parameters=parameters, name="small-fine")
    words = ["--sweep", str(written(tmp_path)), "--dir", str(tmp_path), "--seeds", "1", "2", "--tflops", "1"]
    assert reproduce.main([*words, "--train.epochs", "5"]) == 2
    assert len(configs) == 12
    alike = {(config.train.epochs, config.run.group, config.tracking.wandb) for config in configs}
    assert alike == {(5, "g", "offline")}
    out, error = capsys.readouterr()
    assert "| alpha0.1-lr0.001 | 0 resumes" not in out
    assert "| alpha10-lr0.001 | 1.5 ± 0.7 (1.0, 2.0) |" in out
    assert "| alpha10-lr0.01 | missing |" in out
    assert "best: guidance.alpha=10, optim.lr=0.001\n" in out
    assert "a better one may lie beyond: guidance.alpha, optim.lr" in out
    assert read_sweep(tmp_path / "small-coarse-fine.yaml").points[4] == {"guidance.alpha": 10.0, "optim.lr": 0.001}
    assert "2 of 12 runs failed: small-coarse-alpha10-lr0.01-seed1: the loss is nan" in error
