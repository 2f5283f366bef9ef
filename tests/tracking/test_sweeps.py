"""W&B sweeps: what an agent would start, by wandb's own code, is a command that this program understands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from provscale.command_line import key_types, parse
from provscale.run.job import sweep_member
from tools.sweep import point_words, read_sweep

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def first_values(parameters: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the server would send for one run: a value of each parameter, as the agent gets them."""
    values = {}
    for name, content in parameters.items():
        choices = content.get("values") or [content.get("value", content.get("min"))]
        values[name] = {"value": choices[-1]}
    return values


def agent_command(sweep: dict[str, Any], arguments: dict[str, dict[str, Any]]) -> list[str]:
    """The command line of one run, as wandb's agent expands the macros of a sweep's `command`."""
    macros = create_sweep_command_args({"args": arguments})
    macros |= {"interpreter": ["python"], "program": [sweep["program"]], "env": ["/usr/bin/env"]}
    words: list[str] = []
    for word in create_sweep_command(list(sweep["command"])):
        is_macro = word.startswith("${") and word.endswith("}")
        words += macros[word[2:-1]] if is_macro else [word]
    return words


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_starts_a_valid_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("UCF101", "CUB", "IWILDCAM", "WATERBIRDS"):
        monkeypatch.setenv(f"{name}_ROOT", "/data")
    sweep = yaml.safe_load(path.read_text())
    arguments = first_values(sweep["parameters"])
    words = agent_command(sweep, arguments)
    assert words[:4] == ["/usr/bin/env", "accelerate", "launch", "provscale/train.py"]
    options = words[4:]
    assert f"--guidance.alpha={arguments['guidance.alpha']['value']}" in options
    config_file = options[options.index("--cfg") + 1]
    if not Path(config_file).exists():
        pytest.skip(f"{config_file} is not part of this installation")
    config = parse(options)
    assert config.guidance.alpha == arguments["guidance.alpha"]["value"]
    assert config.run.group == arguments["run.group"]["value"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_same_runs_without_wandb(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point of the grid, as `python -m tools.reproduce --sweep` trains it, is the agent's."""
    monkeypatch.chdir(ROOT)
    for name in ("UCF101", "CUB", "IWILDCAM", "WATERBIRDS"):
        monkeypatch.setenv(f"{name}_ROOT", "/data")
    sweep = read_sweep(path)
    config_file = Path(sweep.words[sweep.words.index("--cfg") + 1])
    if not config_file.exists():
        pytest.skip(f"{config_file} is not part of this installation")
    point = sweep.points[1]
    assert set(sweep.content["parameters"]) <= set(key_types())
    words = agent_command(sweep.content, {key: {"value": value} for key, value in point.items()})
    config = parse(words[4:])
    assert parse(point_words(sweep, point)) == config
    metrics = [*config.evaluation.metrics, "accuracy", "worst_group", "video_ap@0.5"]
    assert sweep.metric in metrics, "an evaluator's first metric has its name, or is one of these"
    if config.evaluation.best:
        assert sweep.metric == config.evaluation.best


def test_sweeps_are_well_formed() -> None:
    """The rules of W&B's sweep configuration that its server would refuse a sweep for."""
    for path in SWEEPS:
        sweep = yaml.safe_load(path.read_text())
        assert sweep["method"] in ("grid", "random", "bayes")
        assert sweep["metric"]["goal"] in ("maximize", "minimize")
        for name, content in sweep["parameters"].items():
            if sweep["method"] == "grid":  # a grid needs values, not ranges
                assert set(content) in ({"value"}, {"values"}), name
            else:
                assert set(content) in ({"value"}, {"values"}, {"distribution", "min", "max"}), name


def test_runs_of_a_sweep_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = ["--cfg", "configs/demo.yaml", "--run.name", "a"]
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert sweep_member(parse(options)).run.name == "a"  # an id alone is no sweep
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    first = sweep_member(parse(options))
    assert first.run.name == "a-abc123"
    assert sweep_member(first).run.name == "a-abc123"  # resumed from its frozen config
    monkeypatch.setenv("WANDB_RUN_ID", "def456")
    assert sweep_member(parse(options)).folder != first.folder


def test_one_run_of_a_sweep(tmp_path: Path) -> None:
    """The demo sweep's command, run as the agent would run it, on a tiny model: W&B knows it by the agent's id."""
    sweep = yaml.safe_load((ROOT / "configs" / "sweeps" / "demo_alpha.yaml").read_text())
    tiny = {
        "data.image_size": 32, "data.batch_size": 8, "data.options": "{train: 16, edits: 16, validation: 16, test: 16}",
        "model.name": "test_resnet", "model.pretrained": "none", "train.max_steps": 2, "tracking.images": 0,
        "train.self_check": "false", "run.dir": str(tmp_path), "run.name": "sweep", "tracking.wandb": "online",
        "guidance.alpha": 0.05,
    }  # fmt: skip
    words = agent_command(sweep, {name: {"value": value} for name, value in tiny.items()})
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, "guidance.alpha": {"value": 0.05}}))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "SLURM_"))}
    env |= {
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path),
        "WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "abc123", "WANDB_SWEEP_PARAM_PATH": str(parameters),
    }  # fmt: skip
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sweep-abc123"
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
    assert (folder / "wandb_id.txt").read_text() == "abc123"
    # What the sweep optimises is logged: rows of kind K as K/NAME.
    evaluations = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {f"{row['kind']}/{name}" for row in evaluations for name in row}
    assert sweep["metric"]["name"] in logged
    # Without a login it is recorded offline, and says how to upload.
    assert "no login found, recording offline" in done.stderr
    assert f"wandb sync {folder}/wandb/offline-run-" in done.stderr
    (record,) = folder.glob("wandb/offline-run-*/run-abc123.wandb")
    content = record.read_bytes()
    for word in (b"guided", b"git_revision", b"torch"):  # the arm's tag, the versions
        assert word in content
