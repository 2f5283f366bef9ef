"""Entry point: the metrics of a network's weights.

    provscale-evaluate --cfg runs/x/config.yaml --weights runs/x/checkpoints/best.safetensors
    accelerate launch provscale/evaluate.py ...     # the same by several processes

Nothing of training is needed but its config: no training images (unless `--split train`), batch size, optimizer or
executor. Whatever engine the launch config names, each process holds the whole network.

`--save-scoremaps DIR` writes every image's score map as DIR/<image id>.npy; `--scoremaps DIR` evaluates such files,
also those of other code, instead of a network. `--carry-thresholds` evaluates validation first and reports test also at
the score thresholds that are best there, as training does.

Every key of the config can be overridden, e.g. `--evaluation.metrics [group_accuracy]`; `--json` prints one JSON object
instead of a table. The run folder is not touched.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# As in train.py.
if __name__ == "__main__" and not globals().get("__package__"):
    os.execv(sys.executable, [*sys.orig_argv[: -len(sys.argv)], "-m", "provscale.evaluate", *sys.argv[1:]])

from provscale.errors import UserError, reported
from provscale.registry import nearest

if TYPE_CHECKING:
    from provscale.config import Config
    from provscale.data.splits import Split

SPLITS: tuple[Split, ...] = ("test", "validation", "train")


def main(arguments: list[str] | None = None) -> int:
    """Prints the metrics. Returns the exit code: 0, or 2 for a user's mistake."""
    words = sys.argv[1:] if arguments is None else arguments
    return reported(lambda: print_metrics(words))


def print_metrics(arguments: list[str]) -> None:
    own = argparse.ArgumentParser(
        prog="provscale-evaluate",
        usage="provscale-evaluate --cfg RUN/config.yaml (--weights FILE | --scoremaps DIR) [--split SPLIT] "
        "[--save-scoremaps DIR] [--carry-thresholds] [--json] [--KEY VALUE ...]",
        allow_abbrev=False,
        epilog="All further options are keys of the config, as for provscale-train.",
        description="Prints the metrics of a network's weights on a split of the data set.",
    )
    own.add_argument("--weights", help="weights as training writes them, e.g. runs/x/checkpoints/best.safetensors")
    own.add_argument("--split", default="test", help="test (default), validation or train")
    own.add_argument("--scoremaps", help="folder of score maps that take the network's place")
    own.add_argument("--save-scoremaps", help="folder to write the network's score maps to")
    own.add_argument("--carry-thresholds", action="store_true", help="report test also at validation's best thresholds")
    own.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options, rest = own.parse_known_args(arguments)
    if options.scoremaps and (options.weights or options.save_scoremaps):
        raise UserError("--scoremaps: takes the place of a network; leave out --weights and --save-scoremaps")
    if not options.weights and not options.scoremaps:
        raise UserError("--weights: is not given; name a weight file, e.g. runs/x/checkpoints/best.safetensors")
    if options.weights and not Path(options.weights).is_file():
        raise UserError(f"--weights: {options.weights} does not exist; training writes best.safetensors and "
                        "final.safetensors into <run>/checkpoints")  # fmt: skip
    if options.split not in SPLITS:
        hint = nearest(options.split, list(SPLITS))
        raise UserError(f"--split: is '{options.split}'{hint}, must be one of: {', '.join(SPLITS)}")
    if options.carry_thresholds and (options.scoremaps or options.split != "test"):
        raise UserError("--carry-thresholds: takes them from validation to test; give --weights and leave out --split")
    if options.scoremaps:
        metrics = evaluate_scoremaps(rest, Path(options.scoremaps), options.split)
    else:
        saved = Path(options.save_scoremaps) if options.save_scoremaps else None
        metrics = evaluate_weights(rest, Path(options.weights), options.split, saved, options.carry_thresholds)
    if metrics is None:
        return
    if options.json:
        print(json.dumps(metrics))
    else:
        width = max(len(name) for name in metrics)
        print("\n".join(f"{name:<{width}}  {value:8.2f}" for name, value in metrics.items()))


def config_of(arguments: list[str], *used: Split) -> Config:
    """The config of a command line, as evaluation of the splits `used` needs it."""
    from provscale.command_line import parse

    config = parse(arguments)
    if used == ("test",):
        config.data.validation_share = None  # whatever is held out of train, test is the same
    return config


def evaluate_scoremaps(arguments: list[str], folder: Path, split: Split) -> dict[str, float] | None:
    """The metrics of saved maps on the main process, None on others; what is unusual about the maps goes to stderr."""
    config = config_of(arguments, split)
    from provscale.build import build_data
    from provscale.engine.select import build_evaluation_engine
    from provscale.evaluation import build_evaluators
    from provscale.evaluation.run import evaluate
    from provscale.evaluation.score_maps import ScoreMapFolder

    splits = build_data(config)
    evaluators = build_evaluators(splits.metrics, splits.num_classes, splits.group_names)
    possible = [name for name, one in zip(splits.metrics, evaluators, strict=True) if one.requires <= {"score_map"}]
    others = [name for name in splits.metrics if name not in possible]
    if not possible:
        raise UserError(
            f"evaluation.metrics: {', '.join(others)} cannot be computed of score maps alone; use maxboxacc"
        )
    splits.metrics = tuple(possible)
    engine = build_evaluation_engine(config)
    maps = ScoreMapFolder(folder, splits.evaluated(split))
    metrics = evaluate(engine, splits, split, config, predict=maps.predict)
    remarks = maps.remarks(engine.gather)
    if not engine.is_main:
        return None
    if others:
        remarks.append(f"--scoremaps: left out, since they need a network: {', '.join(others)}")
    print("".join(f"provscale: {remark}\n" for remark in remarks), end="", file=sys.stderr)
    return metrics


def evaluate_weights(
    arguments: list[str], weights: Path, split: Split, saved: Path | None = None, carry: bool = False
) -> dict[str, float] | None:
    """The metrics on the main process, None on others.

    Args:
        arguments: the config's command line.
        saved: folder to write score maps to, or None.
        carry: evaluate validation first, so that what metrics choose there is used on test.
    """
    config = config_of(arguments, *(("validation",) if carry else ()), split)
    config.model.pretrained = str(weights)
    from provscale.build import build_data, build_network
    from provscale.engine.select import build_evaluation_engine
    from provscale.evaluation.run import evaluate
    from provscale.evaluation.score_maps import ScoreMapWriter
    from provscale.guidance.step import GuidedStep
    from provscale.models.build import read_weights

    splits = build_data(config)
    engine = build_evaluation_engine(config)
    network = build_network(config, splits.num_classes).network
    engine.prepare_for_evaluation(GuidedStep(network, 0.0, precision=config.train.precision))
    found = {name: list(value.shape) for name, value in read_weights(weights, "--weights").items()}
    expected = engine.shapes()
    if found != expected:
        other = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise UserError(
            f"--weights: {weights} is of another model: {len(other)} tensors differ, e.g. '{other[0]}' is "
            f"{found.get(other[0], 'absent')} there and {expected.get(other[0], 'absent')} here; give the config of "
            "the run that wrote it"
        )
    also = [] if saved is None else [ScoreMapWriter(saved)]
    validation = evaluate(engine, splits, "validation", config) if carry else None
    metrics = evaluate(engine, splits, split, config, also, validation=validation)
    return metrics if engine.is_main else None


if __name__ == "__main__":
    sys.exit(main())
