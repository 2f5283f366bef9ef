"""Data set `digits`: real digits on real textures, embedded in packages. See `TexturedDigits`."""

from __future__ import annotations

from dataclasses import dataclass

from torchvision.transforms import v2

from provscale.config import DataConfig
from provscale.data.images.digits import DigitLook, TexturedDigits
from provscale.data.splits import DATA_SETS, DataSplits
from provscale.data.transforms import ItemTransform
from provscale.errors import UserError

COUNTS = ("train", "edits", "validation", "test")


@dataclass(frozen=True)
class DigitsOptions(DigitLook):
    """How many digits there are, and how they look.

    Args:
        train: number of training images.
        edits: number of edited training images, of which `synthesis.added` may take fewer.
        validation: number of images that the best epoch is chosen on.
        test: number of test images.
    """

    train: int = 400
    edits: int = 200
    validation: int = 200
    test: int = 600

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise UserError(f"data.options.{name}: is {getattr(self, name)}, must be at least 1")


@DATA_SETS.register("digits")
def build(config: DataConfig, seed: int, options: DigitsOptions) -> DataSplits:
    """TexturedDigits; without edits where all classes have one texture.

    Training images are flipped by nothing (digits have a handedness); the normalisation is that of
    EfficientNet-lite0's published weights.
    """
    splits = {
        name: TexturedDigits(name, config.image_size, seed, samples=getattr(options, name), look=options)
        for name in COUNTS
        if name != "edits" or len(options.textures) != 1
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
        metrics=("group_accuracy", "maxboxacc", "gradient_energy"),
        best="worst_group",
    )
