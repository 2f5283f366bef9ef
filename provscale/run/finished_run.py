"""A finished run, read from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from provscale.errors import UserError
from provscale.run.localised import FILE as LOCALISED
from provscale.run.localised import LocalisedPictures
from provscale.run.pictures import Pictures
from provscale.tracking.metrics_file import NAME, read_metrics

Row = dict[str, Any]
TRAINING = ("train", "gradients")
"""Kinds of rows that are of training; all others are of evaluations."""


@dataclass
class FinishedRun:
    """What a run folder holds.

    Attributes:
        name: of the folder.
        config, summary: config.yaml and summary.json.
        train: the rows of training, `gradients` among them.
        epochs: the rows of evaluations after an epoch, on the split that the best epoch was chosen on.
        tested: the rows of the test split with the weights of the `best` and of the `last` epoch; older runs have none.
        pictures: of training samples; None where there are none.
        localised: of evaluated images; None where there are none.
    """

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    train: list[Row]
    epochs: list[Row]
    tested: dict[str, Row]
    pictures: Pictures | None
    localised: LocalisedPictures | None

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Raises UserError when the folder is not that of a run that has ended."""
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text())
            summary = json.loads((folder / "summary.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: is no folder of a finished run ({str(error)[:120]})") from None
        rows = read_metrics(folder / NAME)
        pictures, localised = folder / "pictures.npz", folder / LOCALISED
        return cls(
            folder.name,
            config,
            summary,
            [row for row in rows if row["kind"] in TRAINING],
            [row for row in rows if row["kind"] not in TRAINING and "at" not in row],
            {row["at"]: row for row in rows if "at" in row},
            Pictures.load(pictures) if pictures.exists() else None,
            LocalisedPictures.load(localised) if localised.exists() else None,
        )

    @property
    def selected_on(self) -> str:
        """The split that the best epoch was chosen on."""
        return str(self.summary.get("selected_on", "evaluation"))

    @property
    def best_epoch(self) -> int:
        return int(self.summary["best_epoch"])

    @property
    def last_epoch(self) -> int:
        return int(self.epochs[-1]["epoch"]) if self.epochs else 0

    @property
    def best_metric(self) -> str:
        """The metric that the best epoch was chosen by: as noted, or else the first that peaks in that epoch."""
        given = self.summary.get("best_metric") or self.config["evaluation"]["best"]
        names = [name for name in self.metric_names() if all(name in row for row in self.epochs)]
        best = [row for row in self.epochs if row["epoch"] == self.best_epoch]
        peaks = [name for name in names if best and best[0][name] == max(row[name] for row in self.epochs)]
        return str(given or next(iter([*peaks, *names]), ""))

    def training_names(self) -> list[str]:
        """What training is shown by: `loss`, `loss_cls`, `loss_guidance`, the network's own losses, and the length of
        alpha L_PG's gradient over that of L_cls's."""
        names = dict.fromkeys(name for row in self.train for name in row if name.startswith("loss"))
        ratio = "gradient_ratio"
        return [*names, *[ratio] * any(ratio in row for row in self.train)]

    def metric_names(self) -> list[str]:
        """What the evaluations computed."""
        rows = [*self.epochs, *self.tested.values()]
        found = {name: None for row in rows for name, value in row.items() if isinstance(value, int | float)}
        return [name for name in found if name not in ("step", "epoch")]

    def results(self, split: str) -> tuple[Row, Row]:
        """The rows of the best and of the last epoch on a split; empty where it was not evaluated then."""
        if split != self.selected_on:
            tested = self.tested if split == "test" else {}
            return tested.get("best", {}), tested.get("last", {})
        best = [row for row in self.epochs if row["epoch"] == self.best_epoch]
        return (best[-1] if best else {}), (self.epochs[-1] if self.epochs else {})
