"""Builds what a config describes, part by part: data, network and step, training items and their synthesis.

Training needs all of it, evaluation the data and the network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from provscale.config import Config
from provscale.data import DataSplits, build_splits
from provscale.data.loader import LoadedItems
from provscale.data.splits import class_weights, training_source
from provscale.errors import UserError
from provscale.evaluation import build_evaluators
from provscale.guidance.step import GuidedStep
from provscale.models import BuiltModel, build_model
from provscale.randomness import seed_everything
from provscale.synthesis import Synthesis, build_synthesis


def build_data(config: Config) -> DataSplits:
    """The data set, with the metrics that the config asks for.

    Raises:
        UserError: whatever the data set finds wrong, or an unknown metric.
    """
    splits = build_splits(config.data, config.seed)
    splits = replace(
        splits,
        metrics=tuple(config.evaluation.metrics) or splits.metrics,
        best=config.evaluation.best or splits.best,
    )
    build_evaluators(splits.metrics, splits.num_classes, splits.group_names)
    return splits


@dataclass
class TrainingData:
    """What training reads: a synthesis, and the items it is applied to (real ones first, then edits)."""

    synthesis: Synthesis
    items: LoadedItems


def build_training_data(config: Config, splits: DataSplits) -> TrainingData:
    """Looks into every split, so that what is wrong in a file shows before anything is written.

    Raises:
        UserError: an unknown synthesis, one that does not fit the data set, or a mistake in a split.
    """
    synthesis = build_synthesis(config.synthesis)
    if config.synthesis.added is not None and not synthesis.uses_edits:
        raise UserError(
            f"synthesis.added: is {config.synthesis.added}, but synthesis.name {config.synthesis.name} adds no "
            "edited images; set it to null"
        )
    added = config.synthesis.added if synthesis.uses_edits else 0
    if synthesis.uses_annotations:
        splits = with_annotated_training(splits, config)
        added = 0 if splits.edits is None and added is None else added
    source = training_source(splits, added, config.seed)
    for split in (source, splits.evaluated(splits.selected_on), splits.test):
        len(split)
    items = LoadedItems(source, synthesis.prepare, splits.train_transform, splits.num_classes, config.seed)
    return TrainingData(synthesis, items)


def with_annotated_training(splits: DataSplits, config: Config) -> DataSplits:
    """The same splits with annotated training items. Raises UserError: the first of them has no object mask."""
    annotated = splits.train_as_evaluated(range(len(splits.train)))
    if "object_mask" not in annotated[0].annotations:
        raise UserError(
            f"synthesis.name: {config.synthesis.name} needs an object mask of each training image, and data.name "
            f"{config.data.name} has none for {annotated[0].name}; add them (imagefolder: a column "
            "object_mask_file_name in train/metadata.csv), or choose another synthesis"
        )
    return replace(splits, train=annotated)


def build_network(config: Config, num_classes: int) -> BuiltModel:
    """The network with its initial weights, which depend on the seed alone.

    Raises:
        UserError: see `build_model`.
    """
    seed_everything(config.seed, "initial weights")
    return build_model(config.model, num_classes)


def build_step(config: Config, built: BuiltModel, data: TrainingData) -> GuidedStep:
    """The training step of a network.

    Raises:
        UserError: see `GuidedStep` and `class_weights`.
    """
    weights = None
    if config.optim.class_weights == "inverse_frequency":
        weights = class_weights(data.items.source, data.items.num_classes)
    return GuidedStep(built.network, precision=config.train.precision, class_weights=weights, **asdict(config.guidance))
