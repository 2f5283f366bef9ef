"""Tables beside the paper's, from runs with known results; numbers by hand from those and from Tables 9 and 10."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from finished_runs import write_finished

from provscale.paper import page
from provscale.paper.experiments import experiment_of, planned_config
from provscale.paper.page import alpha_curve, alpha_picture
from provscale.paper.tables import (
    Results,
    comma_separated,
    gather,
    latex,
    latex_document,
    markdown_document,
    notes,
    records,
    spread,
)
from provscale.run.finished_run import FinishedRun
from provscale.tracking.base import numbers
from tools import report


def finished(folder: Path, experiment: str, arm: str, seed: int, epoch: int, value: float, **more: Any) -> Path:
    one = experiment_of(experiment)
    name = f"{experiment}-{arm}-seed{seed}"
    words = ["--run.dir", str(folder), "--run.name", name, "--seed", str(seed), *more.pop("words", [])]
    best = {one.metrics[0]: value, **more.pop("best", {})}
    return write_finished(folder, planned_config(one, one.arms[arm], words), epoch, best, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CUB with VGG16: three seeds of the baseline, two guided ones, one of a random mask; Waterbirds: one guided."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, (epoch, value) in enumerate([(50, 62.0), (44, 63.0), (47, 64.0)]):
        finished(folder, "cub_vgg16", "baseline", seed, epoch, value, seconds=7200.0, best={"maxboxacc/iou50": 67.0})
    for seed, (epoch, value) in enumerate([(15, 65.0), (12, 66.4)]):
        finished(folder, "cub_vgg16", "guided", seed, epoch, value, seconds=2160.0, best={"maxboxacc/iou50": 74.0})
    finished(folder, "cub_vgg16", "random", 0, 9, 61.5, words=["--train.precision", "bf16"])
    finished(folder, "waterbirds", "guided", 3, 8, 80.0, selected_on="test")
    return folder


def results_of(folder: Path) -> Results:
    runs = [FinishedRun.read(path) for path in sorted(folder.iterdir()) if (path / "summary.json").exists()]
    return gather(runs, [experiment_of("cub_vgg16"), experiment_of("waterbirds")])[0]


def test_each_number(folder: Path) -> None:
    """Baseline: mean of 62, 63, 64 and of 50, 44, 47; 7200 s in 50 epochs. Guided: 65 and 66.4, whose deviation is
    1.4 / sqrt(2); 2160 s in 15 epochs."""
    rows = {(row["experiment"], row["arm"]): row for row in records(results_of(folder))
            if row["metric"] in ("maxboxacc", "accuracy") and row["paper"] is not None}  # fmt: skip
    baseline, guided = rows["cub_vgg16", "baseline"], rows["cub_vgg16", "guided"]
    expected = {
        "table": "Table 9", "seeds": [0, 1, 2], "values": [62.0, 63.0, 64.0], "mean": 63.0, "deviation": 1.0,
        "paper": 62.3, "difference": 0.7, "best_epoch": 47, "paper_best_epoch": 50, "epochs_saved": None,
        "paper_epochs_saved": None, "epoch_seconds": 144.0, "paper_epoch_seconds": 140, "hours": 2.0,
        "paper_hours": 1.9,
        "selected_on": ["validation"],
    }  # fmt: skip
    assert {key: baseline[key] for key in expected} == {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in expected.items()
    }
    expected = {
        "mean": 65.7, "deviation": 1.4 / 2**0.5, "paper": 65.1, "difference": 0.6, "best_epoch": 13.5,
        "paper_best_epoch": 15, "epochs_saved": 33.5, "paper_epochs_saved": 35, "epoch_seconds": 144.0,
        "paper_epoch_seconds": 150, "hours": 0.6, "paper_hours": 0.6,
    }  # fmt: skip
    assert {key: guided[key] for key in expected} == pytest.approx(expected)
    # One seed has no deviation; the random mask's figure is of the main text.
    random = rows["cub_vgg16", "random"]
    assert (random["table"], random["deviation"]) == ("Main text", None)
    assert random["difference"] == pytest.approx(1.0)
    assert rows["waterbirds", "guided"]["difference"] == pytest.approx(-0.7)
    # What was not trained has the paper's figures alone.
    missing = rows["waterbirds", "alia"]
    assert missing["values"] == []
    assert [missing[key] for key in ("mean", "difference", "best_epoch", "epochs_saved", "hours")] == [None] * 5
    assert (missing["paper"], missing["paper_best_epoch"]) == (71.4, 15)
    assert rows["waterbirds", "guided"]["paper_epochs_saved"] == 5


def test_the_files_of_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unfinished").mkdir()
    one = experiment_of("demo")
    odd = planned_config(one, one.arms["guided"], ["--guidance.alpha", "7"])
    stranger = write_finished(tmp_path, odd, 1, {"x": 1.0})
    runs = [*sorted(folder.iterdir()), tmp_path / "unfinished", stranger]
    assert report.main([*map(str, runs), "--tables", str(tmp_path / "tables")]) == 0
    files = {path.suffix: path.read_text() for path in (tmp_path / "tables").iterdir()}
    written = [str(tmp_path / "tables" / f"tables.{kind}") for kind in ("md", "csv", "tex", "html")]
    assert capsys.readouterr().out.split() == written

    sections = dict(part.split("\n", 1) for part in files[".md"].split("### ")[1:])
    assert list(sections)[:4] == ["Table 9", "Table 10", "Main text", "Not in the paper's tables"]
    assert (
        "| cub_vgg16 | guided | 0, 1 | maxboxacc | 65.7 ± 1.0 (65.0, 66.4) | 65.1 | +0.6 | 13.5 "
        "| 15 | 33.5 | 35 | 144 | 150 | 0.6 | 0.6 |" in sections["Table 9"]
    )
    assert "| alia | - | accuracy | missing | 71.4 | - | - | 15 | - | - | - | - | - | - |" in sections["Table 10"]
    assert "| guided | 3 | accuracy | 80.0 (best epoch chosen on test) | 80.7 | -0.7 | 8 |" in sections["Table 10"]
    assert "| eroded-30 | - | maxboxacc | missing |" in sections["Not in the paper's tables"]
    further = sections["Further metrics: CUB localisation, CutMix, VGG16 (cub_vgg16)"]
    assert "| guided | - | 74.0 ± 0.0 (74.0, 74.0) | - | - |" in further
    for remark in (
        "- cub_vgg16-random-seed0 (cub_vgg16, random): train.precision bf16 instead of no",
        "- not finished, left out: unfinished",
        "- of no experiment, left out: demo-guided",
    ):
        assert remark in files[".md"]

    rows = list(csv.DictReader(io.StringIO(files[".csv"])))
    (row,) = [row for row in rows if row["arm"] == "guided" and row["metric"] == "maxboxacc"]
    assert (row["seeds"], row["values"], float(row["mean"]), row["paper"]) == ("0 1", "65.0 66.4", 65.7, "65.1")
    assert " & guided & 0, 1 & maxboxacc & 65.7 $\\pm$ 1.0 (65.0, 66.4) & 65.1 &" in files[".tex"]
    assert files[".tex"].count("\\begin{table}") == files[".md"].count("### ")

    html = files[".html"]
    assert "<td>65.7 ± 1.0 (65.0, 66.4)</td><td>65.1</td><td>+0.6</td>" in html
    assert html.count("<td>missing</td>") == files[".md"].count("| missing |")
    assert html.count("<figure>") == 3, "a chart of each metric that there is: two of CUB's, one of Waterbirds'"
    for outside in ("<script", "<link", 'src="http', 'href="http'):
        assert outside not in html


def test_curves_are_of_every_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of an arm have its number; a run that selects on test has no diamonds, as its curve is of test."""
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(page, "figure", lambda title, series, x_label, note: drawn.setdefault(title, series) and "")
    for arms in results_of(folder).values():
        page.curves([one for one in arms.values() if one.runs])
    series = drawn["maxboxacc"]
    assert [(one.run, one.ring) for one in series] == [(0, 50), (0, 44), (0, 47), (1, 15), (1, 12), (2, 9)]
    # The guided run of seed 1: 66.4 on test in epoch 12 of 15, on validation 10 less, 61.4 on test in the end.
    assert series[4].y[11] == pytest.approx(56.4)
    assert sorted(series[4].diamonds) == [(12, 66.4), (15, pytest.approx(61.4))]
    assert [(one.ring, one.diamonds) for one in drawn["accuracy"]] == [(8, [])]


def test_two_runs_of_one_seed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = finished(tmp_path, "cub_vgg16", "guided", 1, 10, 60.0)
    again = again.rename(tmp_path / "again")
    runs = [str(folder / "cub_vgg16-guided-seed1"), str(again)]
    assert report.main([*runs, "--tables", str(tmp_path)]) == 2
    assert "again: are both cub_vgg16's arm guided with seed 1; give one of them" in capsys.readouterr().err


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path, "waterbirds", "guided", 0, 8, 80.0)
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("accuracy", "accurate"))
    for words, message in (
        ([], "nothing to write; give --out FILE"),
        (["--tables", str(tmp_path)], "no runs are given"),
        ([str(tmp_path), "--tables", str(tmp_path)], "none of the runs has finished and is an arm of an experiment"),
        ([str(run), "--tables", str(tmp_path)], "has no accuracy on test, which waterbirds is measured by; it has: "),
        ([str(folder / "waterbirds-guided-seed3"), "--tables", "/dev/null/x"], "--tables: /dev/null/x cannot be"),
    ):  # fmt: skip
        assert report.main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


class Server:
    """Stands in for `wandb.Api()`: the runs of some folders as W&B has them, and one that is still running."""

    def __init__(self, folders: list[Path]) -> None:
        self.found = [RunThere(path) for path in folders]
        self.asked: list[str] = []

    def runs(self, project: str) -> list[Any]:
        self.asked.append(project)
        running = RunThere(self.found[0].path)
        running.name, running.state = "still-running", "running"
        return [*self.found, running]


class RunThere:
    state = "finished"

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        run = FinishedRun.read(path)
        self.config = {**run.config, "environment": {"torch": "2"}, "_wandb": {}}
        self.summary = {**run.summary, "maxboxacc": 1.0}

    def scan_history(self) -> list[dict[str, Any]]:
        """As provscale/tracking/wandb.py logs them; keys that other rows have are None."""
        rows = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        kinds = [f"test_{row['at']}" if "at" in row else row["kind"] for row in rows]
        there = [{**numbers(kind, row), "global_step": row["step"]} for kind, row in zip(kinds, rows, strict=True)]
        return [{"train/loss": None, "_step": number, **row} for number, row in enumerate(there)]


def test_the_same_from_wandb(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = sorted(folder.iterdir())
    server = Server(folders)
    monkeypatch.setattr("wandb.Api", lambda: server)
    assert report.main(["--wandb", "me/provscale", "--tables", str(tmp_path / "there")]) == 0
    assert server.asked == ["me/provscale"]
    results = results_of(folder)
    here = {
        "csv": comma_separated(results),
        "tex": latex_document(results),
        "md": markdown_document(results, notes(results)),
    }
    for kind, content in here.items():
        there = (tmp_path / "there" / f"tables.{kind}").read_text()
        assert there.replace("- not finished, left out: still-running\n", "") == content


def test_wandb_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Nobody:
        def runs(self, project: str) -> list[Any]:
            raise ValueError("Could not find project x\nmore")

    monkeypatch.setattr("wandb.Api", Nobody)
    assert report.main(["--wandb", "me/x", "--tables", str(tmp_path)]) == 2
    assert "--wandb: me/x cannot be read (Could not find project x); give ENTITY/PROJECT" in capsys.readouterr().err


def test_curve_over_alpha_is_of_validation(tmp_path: Path) -> None:
    """10 below test in these folders; a baseline with the same epochs is the point at 0."""
    for arm, seed, value in (("edits", 0, 50.0), ("alpha-3", 0, 60.0), ("alpha-3", 1, 62.0), ("guided", 0, 70.0)):
        finished(tmp_path, "demo", arm, seed, 4, value)
    runs = [FinishedRun.read(path) for path in tmp_path.iterdir()]
    arms = gather(runs, [experiment_of("demo")])[0]["demo"]
    assert alpha_curve(arms) == ({"1": [60.0], "3": [50.0, 52.0]}, [40.0])
    assert 'alt="worst_group, % (validation), over alpha" src="data:image/png;base64,' in alpha_picture(arms)
    del arms["alpha-3"]
    arms["alpha-3"] = type(arms["guided"])(experiment_of("demo"), arms["guided"].arm, ())
    assert alpha_picture(arms) == ""


def test_text_of_numbers() -> None:
    """The deviation of 1, 2, 3 and 6 is sqrt(14 / 3)."""
    assert spread([1.0, 2.0, 3.0, 6.0]) == "3.0 ± 2.2 (1.0, 2.0, 3.0, 6.0)"
    assert spread([1.04]) == "1.0"
    assert "a\\_b & 5\\% \\\\\n" in latex("x", [["c", "d"], ["a_b", "5%"]])
