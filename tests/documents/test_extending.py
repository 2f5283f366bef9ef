"""The examples of docs/extending.md register, and train together through the command line's entry point."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from paths import ROOT

from provscale.train import main

PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's examples as a file of one's own."""
    blocks = re.findall(r"<!-- (\w+) -->\s*```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert [name for name, _ in blocks] == ["loss", "synthesis", "data", "model", "metric", "tracker"]
    path = tmp_path_factory.mktemp("extending") / "my_parts.py"
    path.write_text("\n\n".join(block for _, block in blocks))
    return path


def test_examples_train_together(parts: Path, tmp_path: Path) -> None:
    """In a process of its own, with a loader process, which has to import the file, too."""
    arguments = [
        f"--imports=[{parts}]", "--data.name=squares", "--data.options.count=24", "--data.workers=1",
        "--model.name=tiny", "--model.options.width=4", "--synthesis.name=halves",
        "--evaluation.metrics=[confidence,group_accuracy]", "--evaluation.best=accuracy", "--data.batch_size=8",
        "--data.image_size=16", "--train.epochs=1", "--guidance.alpha=0.05", "--guidance.score=margin",
        "--guidance.measure=huber", "--tracking.trackers=[csv]",
        f"--run.dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "provscale.train", *arguments], check=False, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    metrics = json.loads((run / "summary.json").read_text())["test"]["last"]
    assert 50 <= metrics["confidence"] <= 100
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    losses = [row["loss_guidance"] for row in steps]
    assert len(losses) == 3, "24 images in batches of 8"
    assert min(losses) > 0
    table = [line.split(",") for line in (run / "losses.csv").read_text().splitlines()]
    assert [[float(cell) for cell in line] for line in table] == [
        [row["step"], row["loss"], row["loss_cls"], row["loss_guidance"]] for row in steps
    ]
    images = np.load(run / "pictures.npz")["images"]
    # The halves of a mixed picture are those of a dark and a bright square, as they are before normalisation.
    assert set(np.unique(images)) == {50, 200}
    frozen = yaml.safe_load((run / "config.yaml").read_text())
    assert frozen["imports"] == [str(parts)]
    assert (frozen["data"]["options"], frozen["model"]["options"]) == ({"count": 24}, {"width": 4})


def test_options_of_examples_are_checked_and_listed(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--imports=[{parts}]", "--data.name=squares"]
    assert main([*given, "--data.options.cuont=3"]) == 2
    assert "data.options.cuont: unknown option of squares, did you mean 'count'?" in capsys.readouterr().err
    assert main([*given, "--data.options.count=few"]) == 2
    assert "data.options.count: is 'few', must be an integer" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*given, "--help"])
    text = capsys.readouterr().out
    assert re.search(r"--data.options.count COUNT\s+number of images. \(type: int, default: 16\)", text)
