"""Data set `digits`: real digits on real textures, embedded in packages. See `TexturedDigits`."""

from __future__ import annotations

import inspect

from torchvision.transforms import v2

from provscale.config import DataConfig
from provscale.data.images.digits import TexturedDigits
from provscale.data.splits import DATA_SETS, DataSplits
from provscale.data.transforms import ItemTransform
from provscale.errors import UserError
from provscale.registry import nearest

COUNTS = {"train": 400, "edits": 200, "validation": 200, "test": 600}
"""Samples of each split, unless `data.options` says otherwise."""


@DATA_SETS.register("digits")
def build(config: DataConfig, seed: int) -> DataSplits:
    """Options: `train`, `edits`, `validation`, `test` (sample counts) and the settings of `TexturedDigits`.

    Training images are flipped by nothing (digits have a handedness); the normalisation is that of
    EfficientNet-lite0's published weights.
    """
    options = dict(config.options)
    own = set(inspect.signature(TexturedDigits).parameters) - {"split", "size", "seed", "samples"}
    allowed = sorted({*own, *COUNTS})
    for name in options:
        if name not in allowed:
            raise UserError(f"data.options: unknown '{name}'{nearest(name, allowed)} (one of: {', '.join(allowed)})")
    counts = {name: options.pop(name, default) for name, default in COUNTS.items()}
    splits = {
        name: TexturedDigits(name, size=config.image_size, seed=seed, samples=count, **options)
        for name, count in counts.items()
        if name != "edits" or len(options.get("textures", ())) != 1
    }
    test = splits["test"]
    resize = v2.Resize([config.image_size, config.image_size], antialias=True)
    return DataSplits(
        train=splits["train"],
        validation=splits["validation"],
        test=test,
        edits=splits.get("edits"),
        num_classes=test.num_classes,
        class_names=tuple(test.class_names),
        group_names=tuple(test.group_names),
        train_transform=ItemTransform(resize),
        evaluation_transform=ItemTransform(resize),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        metrics=("group_accuracy", "maxboxacc", "gradient_energy"),
        best="worst_group",
    )
