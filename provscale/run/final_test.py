"""The test split at the end of training: with the final weights, and with those of the best epoch."""

from __future__ import annotations

from contextlib import nullcontext

from provscale.config import Config
from provscale.data import DataSplits
from provscale.engine import Engine
from provscale.evaluation.run import evaluate
from provscale.run.checkpoint import BEST, Checkpointer
from provscale.run.checkpoint_folder import Progress
from provscale.signals import StopRequest


def evaluate_best_and_last(
    engine: Engine,
    config: Config,
    splits: DataSplits,
    checkpointer: Checkpointer,
    progress: Progress,
    stop_request: StopRequest,
) -> dict[str, dict[str, float]] | None:
    """The test metrics `last` and, if there is a best epoch, `best`; the network ends with its final weights again.

    None when asked to stop before one of the two evaluations. All processes must call it.

    Raises:
        UserError: see `evaluate`; the best weights cannot be read.
    """
    # By step, as far as they are known.
    metrics: dict[int, dict[str, float]] = {}
    if splits.selected_on == "test":
        metrics = {progress.best_step: progress.best_metrics, progress.last_step: progress.last_metrics}
    steps = {"last": progress.step}
    if progress.best_epoch:
        steps["best"] = progress.best_step
    for at, step in steps.items():
        if step in metrics:
            continue
        if any(engine.gather(stop_request.asked)):
            engine.print("asked to stop: training has ended, the test split is evaluated when it is started again")
            return None
        with checkpointer.weights(BEST) if at == "best" else nullcontext():
            metrics[step] = evaluate(engine, splits, "test", config)
    return {at: metrics[step] for at, step in steps.items()}
