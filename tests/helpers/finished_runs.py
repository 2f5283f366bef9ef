"""Folders of finished runs with results that a test chooses, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from provscale.config import Config


def write_finished(
    folder: Path,
    config: Config,
    best_epoch: int,
    best: Mapping[str, float],
    epochs: int | None = None,
    seconds: float = 100.0,
    selected_on: str = "validation",
) -> Path:
    """A run in <folder>/<run.name>.

    Args:
        best: metrics on test with the weights of the best epoch. The first decides; on the split that selects each is
            10 lower in that epoch, and lower by 1 for every epoch between. With the last weights they are 5 lower.
        epochs: that were trained; None: as in the config.
    """
    run = folder / config.run.name
    run.mkdir(parents=True)
    epochs = epochs or config.train.epochs
    rows = [
        {"kind": "validation", "split": selected_on, "step": 10 * epoch, "epoch": epoch,
         **{name: value - (10 if selected_on == "validation" else 0) - abs(epoch - best_epoch)
            for name, value in best.items()}}
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip
    for at, epoch, lower in (("last", epochs, 5.0), ("best", best_epoch, 0.0)):
        metrics = {name: value - lower for name, value in best.items()}
        rows.append({"kind": "test", "at": at, "step": 10 * epochs, "epoch": epoch, **metrics})
    summary = {
        "best_epoch": best_epoch, "best_metric": next(iter(best)), "selected_on": selected_on, "wall_seconds": seconds,
        "steps": 10 * epochs,
    }  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "summary.json").write_text(json.dumps(summary))
    return run
