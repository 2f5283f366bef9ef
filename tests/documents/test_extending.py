"""The examples of docs/extending.md register, and train together through the command line's entry point."""

from __future__ import annotations

import json
import re
from pathlib import Path

from paths import ROOT

from provscale.train import main

PAGE = ROOT / "docs" / "extending.md"


def test_examples_train_together(tmp_path: Path) -> None:
    blocks = re.findall(r"<!-- (\w+) -->\s*```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert [name for name, _ in blocks] == ["loss", "synthesis", "data", "model", "metric"]
    for name, block in blocks:
        exec(compile(block, f"extending.md {name}", "exec"), {"__name__": f"extending_{name}"})
    arguments = [
        "--data.name=squares", "--model.name=tiny", "--model.options.width=4", "--synthesis.name=halves",
        "--evaluation.metrics=[confidence,group_accuracy]", "--evaluation.best=accuracy", "--data.batch_size=8",
        "--data.image_size=16", "--train.epochs=1", "--guidance.alpha=0.05", "--guidance.score=margin",
        "--guidance.measure=huber", "--tracking.wandb=disabled",
        f"--run.dir={tmp_path}",
    ]  # fmt: skip
    assert main(arguments) == 0
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["last"]
    assert 50 <= metrics["confidence"] <= 100
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss_guidance"] > 0 for row in rows if row["kind"] == "train")
