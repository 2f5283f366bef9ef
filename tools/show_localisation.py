"""Draws where trained networks see an image's class: score map, boxes and input gradient, runs side by side, as PNG.

    python tools/show_localisation.py runs/cub-vgg16-baseline runs/cub-vgg16-guided --images 0 17 230 --out birds.png

For every image of the split a row, for every run two columns. Left: the true class's score map over the image, the
ground-truth boxes in white and in orange the box of the map's largest contour, at the score threshold that MaxBoxAcc
(V1) chose on validation. Right: the norm of the class logit's input gradient, relative to its 99th percentile.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from provscale.build import build_data, build_network
from provscale.command_line import parse
from provscale.data.loader import LoadedItems, make_loader
from provscale.errors import UserError, reported
from provscale.models.build import read_weights
from provscale.predictions import predict
from provscale.run.localised import DEFAULT_THRESHOLD, THRESHOLD, LocalisedPictures, localised
from provscale.synthesis import Synthesis


def pictures_of(run: Path, weights: str, images: list[int]) -> LocalisedPictures:
    """The given test images as a run's network sees them.

    Raises:
        UserError: no run, another network's weights, no such image, or a data set without boxes or pictures.
    """
    config = parse(["--cfg", str(run / "config.yaml")])
    config.model.pretrained = str(run / weights)
    splits = build_data(config)
    outside = [number for number in images if not 0 <= number < len(splits.test)]
    if outside:
        raise UserError(f"--images: {outside[0]} is out of range, must be 0 to {len(splits.test) - 1}")
    network = build_network(config, splits.num_classes).network.eval()
    if read_weights(run / weights, "--weights").keys() != network.state_dict().keys():
        raise UserError(f"--weights: {run / weights} does not fit the run's model.name {config.model.name}")
    items = LoadedItems(splits.test, Synthesis().prepare, splits.evaluation_transform, splits.num_classes, config.seed)
    (loaded,) = make_loader(items, [[(0, number) for number in images]], 0, False)
    sample = loaded.to("cpu")
    found = predict(network, sample, ["score_map", "input_gradient"], None)
    pictures = localised(sample, found, splits, [f"image {number}" for number in images], threshold_of(run))
    if pictures is None:
        raise UserError(f"{run}: its data set {config.data.name} has no images with boxes; give a run on localisation")
    return pictures


def threshold_of(run: Path) -> float:
    """The score threshold of MaxBoxAcc (V1) that the run's best epoch has on validation, or on test where there is no
    validation split; 0.2 for a run that has none."""
    path = run / "summary.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    chosen = summary.get("validation") or summary.get("test", {}).get("best", {})
    return float(chosen.get(THRESHOLD, DEFAULT_THRESHOLD))


def show(given: argparse.Namespace) -> None:
    shown = [pictures_of(run, given.weights, given.images) for run in given.runs]
    plt.switch_backend("agg")
    rows, count = len(given.images), len(shown)
    figure, axes = plt.subplots(rows, 2 * count, figsize=(4.4 * count, 2.4 * rows), layout="constrained", squeeze=False)
    for place, (run, pictures) in enumerate(zip(given.runs, shown, strict=True)):
        for row in range(rows):
            left, right = axes[row, 2 * place], axes[row, 2 * place + 1]
            left.imshow(pictures.found(row))
            left.set_title(f"{run.name}: {pictures.classes[row]}, {pictures.verdict(row)}", fontsize=7)
            right.imshow(pictures.gradient(row))
            right.set_title("input gradient", fontsize=7)
            for axis in (left, right):
                axis.set(xticks=[], yticks=[])
    figure.savefig(given.out, dpi=110)
    print(given.out)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after a user's mistake, which is printed as one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with config.yaml and weights")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 1, 2, 3], help="which of the test split, from 0")
    parser.add_argument("--weights", default="checkpoints/best.safetensors", help="weight file in each run folder")
    parser.add_argument("--out", type=Path, default=Path("localisation.png"))
    return reported(lambda: show(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
