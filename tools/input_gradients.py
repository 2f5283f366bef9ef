"""Where trained networks' input gradients lie: those of the class's logit, of its strongest rival's, and of the margin.

    python -m tools.input_gradients RUN [RUN ...]     # run folders, as training writes them

Guidance acts on a score that the decision need not follow: the margin, the class's logit minus the largest other one,
is what decides. Every sample of the validation split (`--split`) has one region in which the evidence for its class
lies: its object; or, if the run mixes images, what its mask says came from source A, in mixtures of two classes that
the run's own synthesis makes of the split. A row per run and score: mean over samples of the squared gradient in the
whole image and outside the region, and the share outside in percent, mean over samples. Networks are in evaluation
mode.

Shapes: B samples, K classes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from provscale.build import build_data, build_network
from provscale.command_line import parse
from provscale.data.loader import LoadedItems, make_loader
from provscale.data.plan import evaluation_batches
from provscale.data.splits import Split
from provscale.errors import UserError, reported
from provscale.evaluation.gradient_energy import energy_outside, object_mask_of
from provscale.guidance.scores import logit
from provscale.predictions import gradient_of_scores
from provscale.sample import Sample
from provscale.synthesis import Synthesis, build_synthesis

BatchScore = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [B, K] and classes [B] to [B], as in `provscale.guidance.scores`."""


def rival(logits: Tensor, classes: Tensor) -> Tensor:
    """The largest of the other logits."""
    return logits.scatter(1, classes[:, None], float("-inf")).amax(dim=1)


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """The class's logit minus the largest of the others: positive where the decision is right."""
    return logit(logits, classes) - rival(logits, classes)


SCORES: dict[str, BatchScore] = {"logit": logit, "rival": rival, "margin": margin}


def energies(network: nn.Module, sample: Sample, region: Tensor, score: BatchScore) -> Tensor:
    """float64 [B, 2]: each sample's squared input gradient outside `region` ([B, 1, H, W], 1 = inside), and in all."""
    gradient, _ = gradient_of_scores(network, sample, lambda logits: score(logits, sample.targets[:, 0]))
    return torch.stack(energy_outside(gradient, region), dim=1)


def with_region(sample: Sample, synthesis: Synthesis, seed: int) -> tuple[Sample, Tensor]:
    """The samples to look at and their regions, [B, 1, H, W]; mixtures of one class with itself are left out."""
    if not synthesis.pairs:
        size = (int(sample.inputs.shape[2]), int(sample.inputs.shape[3]))
        return sample, object_mask_of(sample, size, [f"sample {index}" for index in sample.index.tolist()])
    mixed = synthesis(sample, None, (seed, "input gradients"))
    mixed = mixed[(mixed.targets[:, 0] != mixed.targets[:, 1]).nonzero()[:, 0]]
    return mixed, mixed.provenance_mask


def measure(run: Path, weights: str, split: Split) -> dict[str, Tensor]:
    """`energies` of every sample, float64 [N, 2], by name of the score.

    Raises:
        UserError: a config that cannot be read, samples that are no images, or whose object is unknown.
    """
    config = parse(["--cfg", str(run / "config.yaml")])
    config.model.pretrained = str(run / weights)
    synthesis = build_synthesis(config.synthesis)
    if synthesis.needs_saliency:
        raise UserError(f"{run}: its synthesis {config.synthesis.name} needs saliency, which is not computed here")
    splits = build_data(config)
    network = build_network(config, splits.num_classes).network.eval()
    source = splits.evaluated(split)
    items = LoadedItems(source, Synthesis().prepare, splits.evaluation_transform, splits.num_classes, config.seed)
    batches = evaluation_batches(len(items), config.evaluation.batch_size, 0, 1)
    found: dict[str, list[Tensor]] = {name: [] for name in SCORES}
    for loaded in make_loader(items, [[(0, index) for index in indices] for indices, _ in batches], 0, False):
        real = loaded.to("cpu")
        if real.inputs.dim() != 4:
            raise UserError(f"{run}: its samples are no images; give a run on images")
        sample, region = with_region(real, synthesis, config.seed)
        for name, score in SCORES.items():
            found[name].append(energies(network, sample, region, score))
    return {name: torch.cat(parts) for name, parts in found.items()}


def row(run: Path, name: str, values: Tensor) -> str:
    outside, total = values.unbind(dim=1)
    share = 100 * (outside / total)[total > 0].mean()
    return f"| {run.name} | {name} | {total.mean():.3g} | {outside.mean():.3g} | {share:.1f} |"


def show(given: argparse.Namespace) -> None:
    print("| run | score | energy | outside | share outside, % |\n|---|---|---|---|---|")
    for run in given.runs:
        if not (run / given.weights).is_file():
            raise UserError(f"{run / given.weights} does not exist; give folders of finished runs")
        for name, values in measure(run, given.weights, given.split).items():
            print(row(run, name, values), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after a user's mistake, which is printed as one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with config.yaml and weights")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="default: validation")
    parser.add_argument("--weights", default="checkpoints/final.safetensors", help="weight file in each run folder")
    return reported(lambda: show(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
