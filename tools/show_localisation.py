"""Draws where trained networks see an image's class: score map, boxes and input gradient, runs side by side, as PNG.

    python tools/show_localisation.py runs/cub-vgg16-baseline runs/cub-vgg16-guided --images 0 17 230 --out birds.png

For every image of the split a row, for every run two columns. Left: the true class's score map over the image, the
ground-truth boxes in white and in yellow the box of the map's largest contour, at the score threshold that the run's
summary has for MaxBoxAcc (V1). Right: the norm of the class logit's input gradient, relative to its 99th percentile.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from provscale.build import build_data, build_network
from provscale.command_line import parse
from provscale.data.loader import LoadedItems, make_loader
from provscale.errors import UserError, reported
from provscale.evaluation.maxboxacc import contour_boxes, normalize_scoremap, resize_scoremap, truncate_boxes
from provscale.models.build import read_weights
from provscale.predictions import predict
from provscale.run.pictures import gradient_image, to_pictures
from provscale.synthesis import Synthesis


@dataclass
class View:
    """One image as one run's network sees it.

    Attributes:
        image, gradient: uint8 [H, W, 3].
        heatmap: float64 [H, W] in [0, 1].
        boxes: int [N, 4], ground truth; box: the network's.
        title: run, class, and whether the network's class is right.
    """

    image: NDArray[np.uint8]
    gradient: NDArray[np.uint8]
    heatmap: NDArray[np.float64]
    boxes: NDArray[np.int64]
    box: tuple[int, int, int, int]
    title: str

    def draw(self, left: Axes, right: Axes) -> None:
        colours = mpl.colormaps["viridis"](self.heatmap)[..., :3]
        left.imshow(0.5 * self.image / 255 + 0.5 * colours)
        for (x0, y0, x1, y1), colour in [*((box, "white") for box in self.boxes.tolist()), (self.box, "#ffdd00")]:
            left.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5))
        left.set_title(self.title, fontsize=7)
        right.imshow(self.gradient)
        right.set_title("input gradient", fontsize=7)
        for axis in (left, right):
            axis.set(xticks=[], yticks=[])


def views_of(run: Path, weights: str, images: list[int]) -> list[View]:
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
    pictures = to_pictures(
        sample.inputs, sample.provenance_mask, found["input_gradient"], splits.mean, splits.std, [""] * len(images)
    )
    if pictures is None or "box" not in sample.annotations:
        raise UserError(f"{run}: its data set {config.data.name} has no images with boxes; give a run on localisation")
    size = (int(sample.inputs.shape[2]), int(sample.inputs.shape[3]))
    threshold = threshold_of(run)
    views = []
    for number in range(len(images)):
        target = int(sample.targets[number, 0])
        heatmap = normalize_scoremap(resize_scoremap(found["score_map"][number].double().numpy(), size))
        levels = (heatmap * 255).astype(np.uint8)
        right = int(found["logits"][number].argmax()) == target
        views.append(
            View(
                pictures.images[number],
                gradient_image(pictures.gradients[number]),
                heatmap,
                truncate_boxes(sample.annotations["box"][number].numpy(), size),
                contour_boxes(levels, int(threshold * levels.max()))[0],
                f"{run.name}: {splits.class_names[target]} ({'right' if right else 'wrong'})",
            )
        )
    return views


def threshold_of(run: Path) -> float:
    """The score threshold of MaxBoxAcc (V1) on test, from the run's metrics; 0.2 for a run that has none."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found = [row["maxboxacc_v1/threshold"] for row in rows if row.get("at") == "best" and "maxboxacc_v1" in row]
    return float(found[-1]) if found else 0.2


def show(given: argparse.Namespace) -> None:
    columns = [views_of(run, given.weights, given.images) for run in given.runs]
    plt.switch_backend("agg")
    rows, count = len(given.images), len(columns)
    figure, axes = plt.subplots(rows, 2 * count, figsize=(4.4 * count, 2.4 * rows), layout="constrained", squeeze=False)
    for place, views in enumerate(columns):
        for row, view in enumerate(views):
            view.draw(axes[row, 2 * place], axes[row, 2 * place + 1])
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
