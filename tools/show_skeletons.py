"""Draws what a trained SKP sees: skeletons coloured by action score, and by input gradient, as PNG and GIF.

    python tools/show_skeletons.py runs/planted-baseline runs/planted-guided --clip 3 --out skeletons

Runs stand beside each other in the PNG and below each other in the GIF. Left: the score of the video's class for every
skeleton (pooling switching). Right: the norm of the class logit's gradient for every keypoint, relative to the largest
of its run. The box is the annotated actor.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from provscale.command_line import parse
from provscale.data import build_splits
from provscale.data.skeletons.items import COCO_KEYPOINTS, SkeletonViews
from provscale.data.skeletons.tubes import Tube
from provscale.errors import UserError
from provscale.models import build_model
from provscale.models.build import read_weights
from provscale.predictions import predict
from provscale.sample import Sample

LIMBS = tuple(
    (COCO_KEYPOINTS.index(first), COCO_KEYPOINTS.index(second))
    for first, second in [
        ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"), ("nose", "left_eye"), ("nose", "right_eye"),
        *((f"{side}_{a}", f"{side}_{b}") for side in ("left", "right") for a, b in [
            ("eye", "ear"), ("shoulder", "elbow"), ("elbow", "wrist"), ("shoulder", "hip"), ("hip", "knee"),
            ("knee", "ankle"),
        ]),
    ]
)  # fmt: skip


class Scene:
    """One view of a clip, scored.

    Attributes:
        points: float32 [P, F, V, 3], x and y in pixels, confidence.
        scores: float32 [P, F], softmax score of the clip's class.
        gradients: float32 [P, F, V].
        frames: int [F].
        extent: [2, 2], first and last x, first and last y that are drawn.
        run, title: name of the run's folder; of the clip, and its class.
    """

    def __init__(self, run: Path, clip: int, weights: str) -> None:
        config = parse(["--cfg", str(run / "config.yaml")])
        splits = build_splits(config.data, config.seed)
        if not isinstance(splits.test, SkeletonViews):
            raise UserError(f"{run}: its data set {config.data.name} has no skeletons; give a run on skeletons")
        views = splits.test
        starts = [index for index in range(len(views)) if views.places[index][1] == 0]
        if not 0 <= clip < len(starts):
            raise UserError(f"--clip: is {clip}; the test split has clips 0 to {len(starts) - 1}")
        index = starts[clip]
        network = build_model(config.model, splits.num_classes).network
        found_weights = read_weights(run / weights, "--weights")
        if found_weights.keys() != network.state_dict().keys():
            raise UserError(f"--weights: {run / weights} does not fit the run's model.name {config.model.name}")
        network.load_state_dict(found_weights)
        item = views[index]
        wanted = frozenset({"instance_scores", "input_gradient"})
        found = predict(network.eval(), Sample.real(item.inputs[None], torch.tensor([item.target])), wanted, None)
        self.scores = found["instance_scores"][0].softmax(dim=2)[..., item.target].numpy()
        self.gradients = found["input_gradient"][0].unflatten(2, (-1, 3)).norm(dim=3).numpy()
        self.points = item.inputs.unflatten(2, (-1, 3)).numpy().copy()
        self.height, self.width = views.clip(index).shape
        self.points[..., :2] = (self.points[..., :2] + 1) / 2 * (self.width, self.height)
        whole = np.array([[0, self.width], [0, self.height]])
        seen = self.points[self.points[..., 2] > 0][:, :2]
        self.extent = np.stack([seen.min(axis=0) - 15, seen.max(axis=0) + 15], axis=1) if len(seen) else whole
        self.frames, self.tubes = views.view(index).frames, views.ground_truth.tubes[views.clip(index).name]
        self.run, self.title = run.name, f"{views.clip(index).name}: {splits.class_names[item.target]}"

    def draw(self, axes: tuple[Axes, Axes], column: int) -> None:
        """One frame: scores on the left, gradients on the right."""
        brightest = max(float(self.gradients.max()), 1e-12)
        for axis, by_score in zip(axes, (True, False), strict=True):
            axis.clear()
            axis.set(xlim=self.extent[0], ylim=self.extent[1][::-1], xticks=[], yticks=[], facecolor="#111111")
            axis.set_aspect("equal")
            for tube in self.tubes:
                box(axis, tube, int(self.frames[column]))
            for person in range(len(self.points)):
                points = self.points[person, column]
                seen = points[:, 2] > 0
                if not seen.any():
                    continue
                limbs = [points[[a, b], :2] for a, b in LIMBS if seen[a] and seen[b]]
                colour = mpl.colormaps["viridis"](float(self.scores[person, column])) if by_score else "#555555"
                axis.add_collection(LineCollection(limbs, colors=[colour], linewidths=2.0))
                if not by_score:
                    share = self.gradients[person, column][seen] / brightest
                    x, y = points[seen, :2].T
                    axis.scatter(x, y, s=4 + 60 * share, c=share, cmap="magma", vmin=-0.3, vmax=1, zorder=3)
        axes[0].set_title(f"{self.run}: action score", fontsize=8)
        axes[1].set_title("input gradient", fontsize=8)


def box(axis: Axes, tube: Tube, frame: int) -> None:
    if tube.first_frame <= frame < tube.end_frame:
        x1, y1, x2, y2 = tube.boxes[frame - tube.first_frame]
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="#66ccff", linestyle=":"))


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after a user's mistake, which is printed as one line."""
    parser = argparse.ArgumentParser(description="Draws skeletons coloured by action score and by input gradient.")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with config.yaml and weights")
    parser.add_argument("--clip", type=int, default=0, help="which clip of the test split, from 0")
    parser.add_argument("--weights", default="checkpoints/best.safetensors", help="weight file in each run folder")
    parser.add_argument("--out", type=Path, default=Path("skeletons"), help="path without ending: .png and .gif follow")
    given = parser.parse_args(arguments)
    try:
        scenes = [Scene(run, given.clip, given.weights) for run in given.runs]
        if len({(scene.title, tuple(scene.frames)) for scene in scenes}) > 1:
            raise UserError(
                f"--clip: clip {given.clip} is not the same in all runs; give runs on the same data.options"
            )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    plt.switch_backend("agg")
    count, frames = len(scenes), len(scenes[0].frames)
    columns = np.linspace(0, frames - 1, 4).round().astype(int)
    figure, axes = plt.subplots(4, 2 * count, figsize=(6.4 * count, 8), layout="constrained", squeeze=False)
    figure.suptitle(scenes[0].title, fontsize=9)
    for row, column in enumerate(columns):
        for place, scene in enumerate(scenes):
            scene.draw((axes[row, 2 * place], axes[row, 2 * place + 1]), int(column))
    figure.savefig(given.out.with_suffix(".png"), dpi=100)
    figure, pairs = plt.subplots(count, 2, figsize=(6.4, 2.8 * count), layout="constrained", squeeze=False)

    def show(column: int) -> None:
        for scene, pair in zip(scenes, pairs, strict=True):
            scene.draw(tuple(pair), column)

    animation = FuncAnimation(figure, show, frames=frames)
    animation.save(given.out.with_suffix(".gif"), writer=PillowWriter(fps=5), dpi=80)
    print(given.out.with_suffix(".png"), given.out.with_suffix(".gif"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
