"""`evaluate.py`: the metrics of weights, without anything of training but its config."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_runs import environment
from folders import make_image_folder
from paths import ROOT
from tiny_runs import rows, train

from provscale import evaluate as entry

BEST, FINAL = "checkpoints/best.safetensors", "checkpoints/final.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose best epoch is not its last, by a metric that no two networks have in common."""
    return train(tmp_path_factory.mktemp("evaluate"), train__epochs=3, evaluation__best="gradient_energy",
                 evaluation__metrics="[gradient_energy, group_accuracy]")  # fmt: skip


def evaluated(run: Path, weights: str, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, float]:
    capsys.readouterr()
    command = ["--cfg", str(run / "config.yaml"), "--weights", str(run / weights), "--json", *words]
    assert entry.main(command) == 0
    metrics: dict[str, float] = json.loads(capsys.readouterr().out)
    return metrics


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def test_numbers_are_those_that_training_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of both weight files on test, and of the best on validation: to the last digit."""
    found = summary(run)
    assert found["best_epoch"] < 3, "else the two weight files are the same"
    assert found["test"]["best"] != found["test"]["last"]
    assert evaluated(run, BEST, capsys) == found["test"]["best"]
    assert evaluated(run, BEST, capsys, "--split", "test") == found["test"]["best"]
    assert evaluated(run, FINAL, capsys) == found["test"]["last"]
    assert evaluated(run, BEST, capsys, "--split", "validation") == found["validation"]
    last = [row for row in rows(run) if row["kind"] == "validation"][-1]
    assert evaluated(run, FINAL, capsys, "--split=validation").items() <= last.items()


def test_the_training_split(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training images have two of the four groups: class k always has background k."""
    groups = {name for name in evaluated(run, BEST, capsys, "--split", "train") if name.startswith("group/")}
    assert groups == {"group/3 on granite", "group/5 on wood"}


def test_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--cfg", str(run / "config.yaml"), "--weights", str(run / BEST)]) == 0
    assert "worst_group" in capsys.readouterr().out


def test_settings_of_training_do_not_matter(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GPU's executor on a CPU, a batch larger than the training set, an optimizer that no engine has."""
    words = ["--guidance.executor=cuda_graph", "--data.batch_size=4096", "--train.accumulation=3"]
    assert evaluated(run, BEST, capsys, *words) == summary(run)["test"]["best"]


@pytest.mark.parametrize(
    "engine", [pytest.param("ddp", marks=pytest.mark.slow), "zero3", pytest.param("fsdp2", marks=pytest.mark.slow)]
)
def test_under_a_launcher(run: Path, engine: str) -> None:
    """Two processes of any launch config; one line of output."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"launch/cpu/{engine}.yaml"]
    words = ["--cfg", str(run / "config.yaml"), "--weights", str(run / BEST), "--json"]
    done = subprocess.run([*launcher, "provscale/evaluate.py", *words], cwd=ROOT, env=environment(),
                          capture_output=True, text=True, check=False, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == pytest.approx(summary(run)["test"]["best"])


def test_mistakes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, weights = ["--cfg", str(run / "config.yaml")], str(run / BEST)
    for words, part in (
        (cfg, "--weights: is not given"),
        ([*cfg, "--weights", "/nowhere.safetensors"], "/nowhere.safetensors does not exist"),
        ([*cfg, "--weights", weights, "--model.name=test_vit"], "another model's weights"),
        ([*cfg, "--weights", weights, "--data.options={classes: [3, 5, 7], textures: [granite, wood, rough]}"],
         "is of another model: 2 tensors differ"),
        ([*cfg, "--weights", str(run / "summary.json")], "cannot be read as weights"),
        ([*cfg, "--weights", weights, "--split", "valid"],
         "--split: is 'valid', did you mean 'validation'?, must be one of: test, validation, train"),
        ([*cfg, "--weights", weights, "--split", "validation", "--carry-thresholds"],
         "--carry-thresholds: takes them from validation to test"),
        ([*cfg, "--weights", weights, "--split=validation", "--data.validation_share=0"],
         "there is no validation split"),
    ):  # fmt: skip
        assert entry.main(words) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("named", [False, True], ids=["classes counted", "classes named"])
def test_images_of_training_need_not_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], named: bool) -> None:
    """Nor edits, nor the split that is not asked for; but the one that is asked for."""
    root = make_image_folder(tmp_path / "images", validation=True)
    options = "{class_names: [a, b]}" if named else "{}"
    run = train(tmp_path, data__name="imagefolder", data__root=root, data__options=options, train__epochs=1,
                synthesis__name="edited")  # fmt: skip
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "edits")
    assert evaluated(run, BEST, capsys) == summary(run)["test"]["best"]
    shutil.rmtree(root / "test")
    assert evaluated(run, BEST, capsys, "--split=validation") == summary(run)["validation"]
    for split in ("test", "train"):
        assert entry.main(["--cfg", str(run / "config.yaml"), "--weights", str(run / BEST), "--split", split]) == 2
        assert f"{split}/metadata.csv does not exist" in capsys.readouterr().err


def test_a_share_held_out_is_evaluated_with_its_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_image_folder(tmp_path / "images")
    run = train(tmp_path, data__name="imagefolder", data__root=root, data__options="{}", train__epochs=1,
                data__validation_share=0.25, data__batch_size=4)  # fmt: skip
    assert evaluated(run, BEST, capsys, "--split=validation") == summary(run)["validation"]
    shutil.rmtree(root / "train")
    assert evaluated(run, BEST, capsys) == summary(run)["test"]["best"]
