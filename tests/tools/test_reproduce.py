"""`python -m tools.reproduce`: what it trains, skips and submits, and what it writes in the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from finished_runs import write_finished
from paths import ROOT

from provscale.command_line import parse
from provscale.errors import UserError
from provscale.paper.experiments import experiment_of
from tools import reproduce
from tools.plan import Costs, StepCost
from tools.reproduce import experiment_runs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is measured."""
    monkeypatch.setattr(Costs, "measured", lambda self, config, guided: StepCost(1e9, 1.0))
    monkeypatch.setattr("tools.plan.measure_machine", lambda device, precisions: dict.fromkeys(precisions, 1.0))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were launched. Each ends at once, with 50 + alpha + 10 x seed; a random mask fails."""
    names: list[str] = []

    def launch(name: str, words: list[str], folder: Path) -> Path:
        config = parse([*words, "--run.dir", str(folder), "--run.name", name])
        names.append(name)
        if config.guidance.mask == "random":
            raise UserError("training failed")
        best = {"worst_group": 50 + config.guidance.alpha + 10 * config.seed, "accuracy": 90.0, "gradient_energy": 5.0}
        return write_finished(folder, config, 4, best)

    monkeypatch.setattr(reproduce, "launch", launch)
    return names


PAGE = "a\n<!-- plan demo -->\n<!-- /plan demo -->\nb\n<!-- measured demo -->\n<!-- /measured demo -->\nc\n"


def test_an_experiment_from_plan_to_table(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "page.md"
    (page.parent / "images").mkdir(parents=True)
    page.write_text(PAGE)
    words = ["--experiment", "demo", "--seeds", "0", "1", "--dir", str(tmp_path / "runs"), "--doc", str(page)]
    words += ["--optim.lr", "0.003"]
    assert reproduce.main([*words, "--arm", "guided", "alpha", "--dry-run"]) == 0
    assert not trained
    assert "| alpha-10 | 0, 1 new | 360 |" in page.read_text().split("<!-- /plan demo -->")[0]

    assert reproduce.main([*words, "--arm", "guided", "edits"]) == 0
    assert trained == [f"demo-{arm}-seed{seed}" for seed in (0, 1) for arm in ("guided", "edits")]
    capsys.readouterr()
    trained.clear()
    assert reproduce.main([*words, "--arm", "guided", "alpha", "none"]) == 0
    assert set(trained) == {
        f"demo-{arm}-seed{seed}" for seed in (0, 1) for arm in ("alpha-0.3", "alpha-3", "alpha-10", "none")
    }
    out = capsys.readouterr().out
    assert "| guided | 0, 1 finished | 0 | 0 | 0 | 0 |" in out
    # Test: 53 and 63, deviation sqrt(50); validation 10 lower.
    table = page.read_text().split("<!-- measured demo -->")[1].split("<!-- /measured demo -->")[0]
    for text in (table, (tmp_path / "runs" / "results-demo" / "tables.md").read_text()):
        assert "| guided | 0, 1 | worst_group | 56.0 ± 7.1 (51.0, 61.0) | - | - | 4 | - | 0 | - | 5 |" in text
        assert "| random | - | worst_group | missing |" in text
        assert "optim.lr 0.003 instead of 0.006" in text
    assert "| alpha | worst_group, % (validation) |" in table
    assert "| 0 | 45.0 ± 7.1 (40.0, 50.0) |\n| 0.3 | 45.3 ± 7.1 (40.3, 50.3) |" in table
    assert "](images/reproduce_demo_alpha.svg)" in table
    assert "right mask" in (page.parent / "images" / "reproduce_demo_alpha.svg").read_text()
    assert (tmp_path / "runs" / "results-demo" / "tables.html").exists()
    # Another training under the same names is refused before anything is trained.
    trained.clear()
    assert reproduce.main([*words[:-2], "--arm", "guided", "--optim.lr", "0.1"]) == 2
    assert "optim.lr: is 0.1, but " in capsys.readouterr().err
    assert not trained


def test_one_failure_stops_no_other_run(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--experiment", "demo", "--arm", "random", "none", "--seeds", "0", "1", "--dir", str(tmp_path)]
    assert reproduce.main(words) == 2
    assert sorted(trained) == [f"demo-{arm}-seed{seed}" for arm in ("none", "random") for seed in (0, 1)]
    out, error = capsys.readouterr()
    assert "| none | 0, 1 | worst_group | 56.0 ± 7.1 (51.0, 61.0) |" in out
    assert "2 of 4 runs failed: demo-random-seed0: training failed; demo-random-seed1: training failed" in error


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for words, message in (
        ([], "give either --experiment NAME or --sweep FILE"),
        (["--experiment", "demo", "--arm", "guidde"], "demo has no arm 'guidde', did you mean 'guided'"),
        (
            ["--experiment", "demo", "--arm", "edits", "--optim.lrr", "1"],
            "unknown key 'optim.lrr', did you mean 'optim.lr'?",
        ),
        (["--experiment", "demo", "--seeds", "1", "1"], "is planned twice"),
        (["--experiment", "demo", "--arm", "edits", "--slurm"], "--slurm: there is no squeue here"),
    ):
        assert reproduce.main([*words, "--dir", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


SQUEUE = "#!/bin/sh\necho demo-guided-seed1\n"
SBATCH = """#!/bin/sh
case "$*" in *seed9*) echo 'sbatch: error: no such partition' >&2; exit 1;; esac
printf '%s\\n' "$@" >"{folder}/$(echo "$@" | grep -o 'run.name [^ ]*' | cut -d' ' -f2)"
echo 77
"""


def test_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A job for each run that is neither finished nor queued, whose words are the run's config."""
    programs, jobs, runs = tmp_path / "bin", tmp_path / "jobs", tmp_path / "my runs"
    programs.mkdir()
    jobs.mkdir()
    for name, text in (("squeue", SQUEUE), ("sbatch", SBATCH.format(folder=jobs))):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    experiment = experiment_of("demo")
    (done,) = experiment_runs(experiment, ["guided"], [0], runs, [])
    write_finished(runs, done.config, 1, {"worst_group": 1.0})
    words = ["--experiment", "demo", "--dir", str(runs), "--slurm=--partition=gpu --gpus-per-node=0"]
    assert reproduce.main([*words, "--arm", "guided", "random", "--seeds", "0", "1"]) == 0
    assert sorted(path.name for path in jobs.iterdir()) == ["demo-random-seed0", "demo-random-seed1"]
    given = (jobs / "demo-random-seed1").read_text().splitlines()
    options, script, (config, *rest) = given[:4], given[4], given[5:]
    assert options == ["--parsable", "--job-name=demo-random-seed1", "--partition=gpu", "--gpus-per-node=0"]
    assert script == "slurm/reproduce.sh"
    planned = experiment_runs(experiment, ["random"], [1], runs, [])[0].config
    # slurm/job.sh's `train` puts its own run.dir before these words.
    assert parse(["--cfg", config, "--run.dir", "x", *rest]) == planned
    assert "job 77: demo-random-seed1" in capsys.readouterr().out
    assert reproduce.main([*words, "--arm", "guided", "--seeds", "9"]) == 2
    assert "--slurm: sbatch failed: sbatch: error: no such partition" in capsys.readouterr().err


def test_the_job_script_trains_what_it_is_given() -> None:
    text = (ROOT / "slurm" / "reproduce.sh").read_text()
    assert text.endswith('source slurm/job.sh\ntrain "$@"\n')
    assert {"--requeue", "--open-mode=append", "--signal=USR1@300"} <= set(text.split())
