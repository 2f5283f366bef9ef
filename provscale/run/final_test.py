"""The test split at the end of training: with the final weights, and with those of the best epoch."""

from __future__ import annotations

from contextlib import nullcontext

from provscale.config import Config
from provscale.data import DataSplits
from provscale.engine import Engine
from provscale.evaluation.run import evaluate, localised_pictures, localises
from provscale.run.checkpoint import BEST, Checkpointer
from provscale.run.checkpoint_folder import Progress
from provscale.run.localised import DEFAULT_THRESHOLD, THRESHOLD, LocalisedPictures
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
    selecting = {progress.best_step: progress.best_metrics, progress.last_step: progress.last_metrics}
    if splits.selected_on == "test":
        metrics = selecting
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
            metrics[step] = evaluate(engine, splits, "test", config, validation=selecting.get(step))
    return {at: metrics[step] for at, step in steps.items()}


def localised_by_best(
    engine: Engine, config: Config, splits: DataSplits, checkpointer: Checkpointer, progress: Progress
) -> LocalisedPictures | None:
    """Pictures with the best epoch's weights, at the threshold that this epoch has on the split that selects; the
    network ends with its final weights again. None if switched off, no metric reads score maps, or there are no boxes.
    All processes must call it."""
    if not (config.tracking.localisation and localises(splits)):
        return None
    threshold = progress.best_metrics.get(THRESHOLD, DEFAULT_THRESHOLD)
    others = bool(progress.best_epoch) and progress.best_step != progress.step
    with checkpointer.weights(BEST) if others else nullcontext():
        return localised_pictures(engine, splits, config, threshold)
