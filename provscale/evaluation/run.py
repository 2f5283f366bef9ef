"""Runs the evaluators over the evaluation split, on all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provscale.data.base import DataSplits, LoadedItems, make_loader
from provscale.data.plan import evaluation_batches
from provscale.evaluation.base import Evaluator
from provscale.run.pictures import Pictures, to_pictures
from provscale.synthesis import Synthesis

if TYPE_CHECKING:
    from provscale.engine import Engine


def evaluate(engine: Engine, splits: DataSplits, evaluators: list[Evaluator], batch_size: int, workers: int,
             seed: int) -> dict[str, float]:  # fmt: skip
    """All metrics over `splits.evaluation`; every sample counts once whatever the number of processes.

    All processes must call it; they return the same numbers.
    """
    outputs = frozenset[str]().union(*(evaluator.requires for evaluator in evaluators))
    items = LoadedItems(splits.evaluation, Synthesis().prepare, splits.evaluation_transform, splits.num_classes, seed)
    batches = evaluation_batches(len(items), batch_size, engine.rank, engine.world_size)
    keys = [[(0, index) for index in indices] for indices, _ in batches]
    for evaluator in evaluators:
        evaluator.begin(splits)
    engine.prepared.eval()
    loader = make_loader(items, keys, workers, engine.device.type == "cuda")
    for (_, counting), loaded in zip(batches, loader, strict=True):
        sample = loaded.to(engine.device)
        predictions = engine.predict(sample, outputs)
        if counting:
            counted = {name: value[:counting] for name, value in predictions.items()}
            for evaluator in evaluators:
                evaluator.accumulate(sample[:counting], counted)
    engine.prepared.train()
    metrics: dict[str, float] = {}
    for evaluator in evaluators:
        metrics.update(evaluator.compute(engine.gather))
    return {name: float(value) for name, value in metrics.items()}


def look(engine: Engine, items: LoadedItems, synthesis: Synthesis, splits: DataSplits, count: int) -> Pictures | None:
    """Pictures of `count` synthetic training samples, always the same ones, without random augmentation.

    All processes must call it. None if there are no synthetic samples, or they are no images.
    """
    # Edits come last in the training set; any sample can be mixed.
    synthetic = len(items) - len(splits.train) if synthesis.uses_edits else len(items) if synthesis.pairs else 0
    count = min(count, synthetic)
    if not count:
        return None
    first = len(items) - count if synthesis.uses_edits else 0
    indices = list(range(first, first + count))
    plain = LoadedItems(items.source, synthesis.prepare, splits.evaluation_transform, items.num_classes, items.seed)
    (loaded,) = make_loader(plain, [[(0, index) for index in indices]], 0, False)
    sample = synthesis(loaded.to(engine.device), None, (items.seed, "look"))
    engine.prepared.eval()
    gradient = engine.predict(sample, frozenset({"input_gradient"}))["input_gradient"]
    engine.prepared.train()
    names = [items.source[index].name.rsplit("/", 1)[-1] for index in indices]
    return to_pictures(
        sample.inputs.cpu(), sample.provenance_mask.cpu(), gradient.cpu(), splits.mean, splits.std, names
    )
