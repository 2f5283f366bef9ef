"""Worst group over alpha with the right and with wrong masks, on the demo's edited images: docs/demo.md's picture.

python -m tools.demo_curve --seeds 0      trains what is not trained yet; writes docs/demo_alpha.json,
                                            the picture and the table in docs/demo.md
python -m tools.demo_curve                  picture and table from docs/demo_alpha.json again

Values are those of the validation split in the last epoch: the test split has no part in choosing alpha.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from provscale.errors import UserError, reported
from provscale.files import update_document, write_atomically
from provscale.paper.alpha_curve import STYLES, draw_curves, picture
from provscale.tracking.metrics_file import read_metrics
from tools.demo_runs import ROOT, train_all, values_text

CONFIG = ROOT / "configs" / "demo.yaml"
DATA = ROOT / "docs" / "demo_alpha.json"
TITLE = "The curve over alpha, measured before (docs/demo.md)"
PAGE = ROOT / "docs" / "demo.md"
PICTURE = ROOT / "docs" / "images" / "demo_alpha.svg"
ALPHAS = (0.3, 1.0, 3.0, 10.0)
BASELINE = "edits only"
Curves = dict[str, Any]
"""`seeds`: list; `edits only`: worst group per seed; `provenance`, `random`, `none`: the same by alpha, as text."""


def measure(seeds: Sequence[int], alphas: Sequence[float], folder: Path, jobs: int) -> Curves:
    """Trains every run that has not finished yet, and reads all of them."""
    common = ["--cfg", str(CONFIG), "--tracking.images", "0", "--tracking.wandb", "disabled"]
    arms = [(BASELINE, [*common, "--guidance.alpha", "0"])]
    for mask in STYLES:
        guided = [*common, "--guidance.mask", mask, "--guidance.alpha"]
        arms += [(f"{mask} {alpha:g}", [*guided, str(alpha)]) for alpha in alphas]
    runs = train_all("alpha", arms, seeds, folder, jobs)
    values = {arm: [last_validation(run) for run in paths] for arm, paths in runs.items()}
    curves: Curves = {"seeds": list(seeds), BASELINE: values[BASELINE]}
    return curves | {mask: {f"{alpha:g}": values[f"{mask} {alpha:g}"] for alpha in alphas} for mask in STYLES}


def last_validation(run: Path) -> float:
    """Worst group, %, on the validation split after the last epoch."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "validation"]
    return float(rows[-1]["worst_group"])


def read(path: Path = DATA) -> Curves:
    """Raises UserError: no data yet."""
    if not path.exists():
        raise UserError(f"{path} does not exist; measure it with: python -m tools.demo_curve --seeds 0")
    curves: Curves = json.loads(path.read_text())
    return curves


def table(curves: Curves) -> str:
    """A Markdown table: rows of alpha, columns of masks, mean (each seed)."""
    header = "| alpha | " + " | ".join(style["label"] for style in STYLES.values()) + " |"
    lines = [header, "|---|---|---|---|"]
    lines.append("| 0 (edits only) | " + " | ".join([values_text(curves[BASELINE])] * len(STYLES)) + " |")
    for alpha in curves["provenance"]:
        lines.append(f"| {alpha} | " + " | ".join(values_text(curves[mask][alpha]) for mask in STYLES) + " |")
    return "\n".join(lines)


def draw(curves: Curves) -> Figure:
    """The picture of `table`."""
    masks = {mask: curves[mask] for mask in STYLES}
    return draw_curves(masks, curves[BASELINE], f"{BASELINE} (alpha 0)", "worst group, % (validation)", (0, 100))


def section(curves: Curves) -> str:
    """The picture as a section of a report, HTML that loads nothing."""
    caption = "worst group over alpha, with the right mask, a random mask and no mask"
    return f"<h2>{TITLE}</h2>{picture(draw(curves), caption)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to train (default: none, draw only)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS, help=f"default: {ALPHAS}")
    arguments = parser.parse_args()

    def run() -> None:
        if arguments.seeds:
            curves = measure(arguments.seeds, arguments.alphas, arguments.dir, arguments.jobs)
            write_atomically(DATA, json.dumps(curves, indent=1) + "\n")
        update_document(PAGE, table(read()), "measured alpha")
        figure = draw(read())
        figure.savefig(PICTURE, metadata={"Date": None})
        print(PICTURE)

    return reported(run)


if __name__ == "__main__":
    sys.exit(main())
