"""Makes a folder to share of a finished run: weights, config and a model card.

    python -m tools.export runs/demo-guided --out shared/demo-guided
    hf upload USER/NAME shared/demo-guided          # publishes it on a hub, after `hf auth login`

    model.safetensors    the weights of the best epoch (or of the last: --weights final)
    config.json          of a timm backbone: what timm.create_model("local-dir:DIR", pretrained=True) reads
    config.yaml          the run's own config; any network loads with --model.pretrained DIR
    README.md            the model card: task, data, metrics with their split, command, versions, licences

Nothing of the run but these is copied. The data need not be there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from provscale.errors import UserError, reported
from provscale.registry import nearest

CHOICES = {"best": "best", "final": "last"}
"""Weight files of a run, and what their test metrics are called."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="tools.export", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; must not hold anything"
    )
    parser.add_argument("--weights", default="best", help="best (default) or final")
    parser.add_argument("--licence", default="other", help="the card's `license`, an identifier of the hub")
    options = parser.parse_args(arguments)
    return reported(lambda: export(options.run, options.out, options.weights, options.licence))


def export(run: Path, out: Path, which: str = "best", licence: str = "other") -> None:
    """Writes the folder `out`, whole or not at all.

    Raises:
        UserError: no finished run, weights that do not fit its config, or an `out` that is in use.
    """
    if which not in CHOICES:
        raise UserError(f"--weights: is '{which}'{nearest(which, list(CHOICES))}, must be one of: {', '.join(CHOICES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} holds something already; choose another folder")
    weights = run / "checkpoints" / f"{which}.safetensors"
    if run.is_dir() and not weights.is_file():
        raise UserError(f"{run}: has no {weights.name} in checkpoints/; choose the other of: {', '.join(CHOICES)}")
    from provscale.run.finished_run import FinishedRun
    from tools.model_card import model_card

    finished = FinishedRun.read(run)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror}); choose another folder") from None
    try:
        timm_reads = write_network(run, finished.summary, weights, aside)
        shutil.copyfile(run / "config.yaml", aside / "config.yaml")
        card = model_card(finished, CHOICES[which], out.name, licence, timm_reads)
        (aside / "README.md").write_text(card)
        aside.chmod(0o755)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}; publish it: hf upload USER/NAME {out}")


def write_network(run: Path, summary: dict[str, Any], weights: Path, folder: Path) -> bool:
    """Writes model.safetensors and config.json; returns whether timm loads them."""
    from safetensors.torch import save_file
    from timm.models import is_model, save_for_hf

    from provscale.command_line import parse
    from provscale.models import MODELS
    from provscale.models.build import WEIGHTS, create, read_weights

    config = parse(["--cfg", str(run / "config.yaml")])
    state = {name: value.contiguous() for name, value in read_weights(weights, str(run)).items()}
    # The number of classes is where the network with two differs from the weights.
    shapes = create(config.model, 2).state_dict()
    other = [name for name, value in state.items() if name in shapes and value.shape != shapes[name].shape]
    num_classes = int(state[other[0]].shape[0]) if other else 2
    network = create(config.model, num_classes)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{weights}: does not fit {run / 'config.yaml'} ({str(error).splitlines()[-1].strip()[:160]})"
        ) from None
    names = summary.get("classes") or []
    timm_reads = config.model.name not in MODELS and is_model(config.model.name)
    if timm_reads:
        side = config.data.image_size
        seen: dict[str, Any] = {"input_size": (3, side, side), "crop_pct": 1.0, "crop_mode": "squash"}
        seen |= {key: tuple(summary[key]) for key in ("mean", "std") if summary.get(key)}
        labels = {"label_names": names} if len(names) == num_classes else {}
        save_for_hf(network, str(folder), model_config=labels, safe_serialization=True, data_config=seen)
    else:
        save_file(state, folder / WEIGHTS)
        content = {
            "architecture": config.model.name,
            "library_name": "provscale",
            "num_classes": num_classes,
            "model_args": config.model.options,
            "label_names": names,
        }
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    return timm_reads


if __name__ == "__main__":
    sys.exit(main())
