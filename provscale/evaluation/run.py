"""Runs the evaluators over a split, on all processes; and pictures of what the network is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from provscale.config import Config
from provscale.data.loader import LoadedItems, make_loader
from provscale.data.plan import evaluation_batches
from provscale.data.splits import DataSplits, Split, item_id
from provscale.errors import UserError
from provscale.evaluation import Evaluator, build_evaluators
from provscale.randomness import numpy_generator
from provscale.run.localised import LocalisedPictures, localised
from provscale.run.pictures import Pictures, to_pictures
from provscale.sample import Sample
from provscale.synthesis import Synthesis
from provscale.synthesis.saliency import with_saliency

if TYPE_CHECKING:
    from provscale.engine import Engine


def evaluate(
    engine: Engine,
    splits: DataSplits,
    split: Split,
    config: Config,
    also: Sequence[Evaluator] = (),
    predict: Callable[[Sample], dict[str, Tensor]] | None = None,
    validation: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """All of `splits.metrics` over one split; every sample counts once whatever the number of processes.

    All processes must call it; they return the same numbers.

    Args:
        also: evaluators beside those of the metrics.
        predict: gives all outputs that the evaluators require; None = the engine's network.
        validation: the same weights' metrics on validation, when the split is test.

    Raises:
        UserError: there is no such split, it is empty, or an evaluator lacks something in it.
    """
    source, seed, workers = splits.evaluated(split), config.seed, config.data.workers
    if not len(source):
        raise UserError(f"data: the {split} split is empty; check data.root and its files")
    evaluators = build_evaluators(splits.metrics, splits.num_classes, splits.group_names, splits.training_groups)
    evaluators += also
    outputs = frozenset[str]().union(*(evaluator.requires for evaluator in evaluators))
    items = LoadedItems(source, Synthesis().prepare, splits.evaluation_transform, splits.num_classes, seed)
    batches = evaluation_batches(len(items), config.evaluation.batch_size, engine.rank, engine.world_size)
    keys = [[(0, index) for index in indices] for indices, _ in batches]
    for evaluator in evaluators:
        evaluator.validation = validation or {}
        evaluator.begin(source)
    if predict is None:
        engine.prepared.eval()
    loader = make_loader(items, keys, workers, engine.device.type == "cuda")
    for (_, counting), loaded in zip(batches, loader, strict=True):
        sample = loaded.to(engine.device)
        predictions = engine.predict(sample, outputs) if predict is None else predict(sample)
        if counting:
            counted = {name: value[:counting] for name, value in predictions.items()}
            for evaluator in evaluators:
                evaluator.accumulate(sample[:counting], counted)
    if predict is None:
        engine.prepared.train()
    metrics: dict[str, float] = {}
    for evaluator in evaluators:
        metrics.update(evaluator.compute(engine.gather))
    return {name: float(value) for name, value in metrics.items()}


def sample_pictures(
    engine: Engine, items: LoadedItems, synthesis: Synthesis, splits: DataSplits, count: int
) -> Pictures | None:
    """Pictures of `count` synthetic training samples, always the same ones, without random augmentation.

    All processes must call it. None if there are no synthetic samples, or they are no images.
    """
    # Edits come last in the training set; any sample can be mixed, or have a mask.
    everything = synthesis.pairs or synthesis.uses_annotations
    synthetic = len(items) if everything else len(items) - len(splits.train) if synthesis.uses_edits else 0
    count = min(count, synthetic)
    if not count:
        return None
    first = len(items) - count if synthesis.uses_edits else 0
    indices = list(range(first, first + count))
    plain = LoadedItems(items.source, synthesis.prepare, splits.evaluation_transform, items.num_classes, items.seed)
    (loaded,) = make_loader(plain, [[(0, index) for index in indices]], 0, False)
    real = with_saliency(engine, synthesis, loaded.to(engine.device))
    sample = synthesis(real, None, (items.seed, "pictures"))
    engine.prepared.eval()
    gradient = engine.predict(sample, frozenset({"input_gradient"}))["input_gradient"]
    engine.prepared.train()
    names = [items.source[index].name.rsplit("/", 1)[-1] for index in indices]
    return to_pictures(
        sample.inputs.cpu(), sample.provenance_mask.cpu(), gradient.cpu(), splits.mean, splits.std, names
    )


def localises(splits: DataSplits) -> bool:
    """Whether a metric reads score maps."""
    evaluators = build_evaluators(splits.metrics, splits.num_classes, splits.group_names, splits.training_groups)
    return any("score_map" in evaluator.requires for evaluator in evaluators)


def localised_pictures(
    engine: Engine, splits: DataSplits, config: Config, threshold: float
) -> LocalisedPictures | None:
    """Pictures of `tracking.localisation` images, at least one, of the split that selects, drawn by the seed.

    All processes must call it. The network must give score maps. None if these are no images with boxes.
    """
    source, count = splits.evaluated(splits.selected_on), config.tracking.localisation
    drawn = numpy_generator(config.seed, "localisation").choice(len(source), min(count, len(source)), replace=False)
    items = LoadedItems(source, Synthesis().prepare, splits.evaluation_transform, splits.num_classes, config.seed)
    (loaded,) = make_loader(items, [[(0, index) for index in sorted(drawn.tolist())]], 0, False)
    sample = loaded.to(engine.device)
    engine.prepared.eval()
    found = engine.predict(sample, frozenset({"score_map", "input_gradient"}))
    engine.prepared.train()
    names = [item_id(source, index) for index in sample.index.tolist()]
    return localised(sample.to("cpu"), found, splits, names, threshold)
