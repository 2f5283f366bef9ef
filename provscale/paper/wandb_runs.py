"""Finished runs, read from W&B as they are from run folders. Nothing is written there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from provscale.errors import UserError
from provscale.run.finished_run import FinishedRun, Row

EVALUATIONS = ("validation", "test_best", "test_last")
"""Kinds of rows that are of evaluations."""


def read_project(project: str, api: Any = None) -> tuple[list[FinishedRun], list[str]]:
    """The finished runs of ENTITY/PROJECT, and the names of those that have not finished.

    Args:
        api: stands in for `wandb.Api()`.

    Raises:
        UserError: the project cannot be read.
    """
    try:
        if api is None:
            import wandb

            api = wandb.Api()
        found, unfinished = [], []
        for run in api.runs(project):
            if run.state == "finished" and "best_epoch" in run.summary:
                found.append(finished_run(run))
            else:
                unfinished.append(str(run.name))
    except UserError:
        raise
    except Exception as error:  # the client raises many kinds: no login, no network, no such project
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--wandb: {project} cannot be read ({first[:160]}); give ENTITY/PROJECT, and log in with "
                        "`wandb login`") from None  # fmt: skip
    return found, unfinished


def finished_run(run: Any) -> FinishedRun:
    """Raises UserError: its wall time is not there, so an older version has recorded it."""
    names = ("best_epoch", "best_metric", "selected_on", "wall_seconds")
    for name in names:
        if name not in run.summary:
            raise UserError(f"--wandb: {run.name} has no {name} in its summary; give its run folder instead")
    rows: dict[str, list[Row]] = {kind: list(rows_of(run, kind)) for kind in EVALUATIONS}
    return FinishedRun(
        name=str(run.name),
        config={key: value for key, value in run.config.items() if key != "environment" and not key.startswith("_")},
        summary={name: run.summary[name] for name in names},
        train=[],
        epochs=rows["validation"],
        # Recorded again when a finished run is started again: the newest counts.
        tested={kind.removeprefix("test_"): rows[kind][-1] for kind in EVALUATIONS[1:] if rows[kind]},
        pictures=None,
        localised=None,
    )


def rows_of(run: Any, kind: str) -> Iterator[Row]:
    """The rows of a kind, which W&B has as KIND/NAME."""
    for row in run.scan_history():
        found = {key.removeprefix(f"{kind}/"): value for key, value in row.items()
                 if key.startswith(f"{kind}/") and value is not None}  # fmt: skip
        if found:
            yield {"kind": kind, **found}
