"""A task's first metric over alpha, with the right and with wrong masks: pictures of docs/demo.md and docs/results.md.

python -m tools.demo_curve --seeds 0      trains what is not trained yet; writes docs/demo_alpha.json, the picture and
                                            the table in docs/demo.md
python -m tools.demo_curve                  picture and table from docs/demo_alpha.json again
python -m tools.demo_curve --tasks configs/birds_tasks.yaml --task birds-in-scenes --doc docs/results.md --seeds 0
                                            the same of another task

A task has a curve where its entry in the YAML says `curve`: `name` of its files, `baseline` (the arm without guidance)
and `alphas`. Values are those of the validation split in the last epoch: the test split has no part in choosing alpha.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from provscale.errors import UserError, reported
from provscale.files import markdown_table, update_document, write_atomically
from provscale.paper.alpha_curve import STYLES, draw_curves, picture
from provscale.run.frozen_config import read_frozen
from tools.demo_runs import (
    LABELS,
    ROOT,
    TASKS,
    chosen_tasks,
    common_words,
    last_validation,
    runs_parser,
    train_all,
    values_text,
)  # fmt: skip

DOCS = ROOT / "docs"
TITLE = "The curve over alpha, measured before"
Curves = dict[str, Any]
"""`seeds`: list; `network`; `metric`; `baseline`: its arm's name; `without`: the metric per seed of this arm;
`provenance`, `random`, `none`: the same by alpha, as text."""


def measure(name: str, task: dict[str, Any], seeds: Sequence[int], folder: Path, jobs: int) -> Curves:
    """Trains every run of a task's curve that has not finished yet, and reads all of them."""
    common = [*common_words(task), "--tracking.images", "0", "--tracking.wandb", "disabled"]
    baseline, alphas, metric = task["curve"]["baseline"], task["curve"]["alphas"], task["metrics"][0]
    arms = [(baseline, [*common, "--guidance.alpha", "0"])]
    for mask in STYLES:
        guided = [*common, "--guidance.mask", mask, "--guidance.alpha"]
        arms += [(f"{mask} {alpha:g}", [*guided, str(alpha)]) for alpha in alphas]
    runs = train_all(f"{name}-alpha", arms, seeds, folder, jobs)
    values = {arm: [last_validation(run, metric) for run in paths] for arm, paths in runs.items()}
    network = read_frozen(runs[baseline][0] / "config.yaml")["model"]["name"]
    curves: Curves = {"seeds": list(seeds), "network": network, "metric": metric, "baseline": baseline}
    curves["without"] = values[baseline]
    return curves | {mask: {f"{alpha:g}": values[f"{mask} {alpha:g}"] for alpha in alphas} for mask in STYLES}


def data_file(task: dict[str, Any]) -> Path:
    return DOCS / f"{task['curve']['name']}.json"


def measured(task: dict[str, Any]) -> bool:
    """Whether a task has a curve, and it has been measured."""
    return "curve" in task and data_file(task).exists()


def read(path: Path) -> Curves:
    """Raises UserError: no data yet."""
    if not path.exists():
        raise UserError(f"{path} does not exist; measure it with: python -m tools.demo_curve --seeds 0")
    curves: Curves = json.loads(path.read_text())
    return curves


def table(curves: Curves) -> str:
    """A Markdown table: rows of alpha, columns of masks, mean (each seed)."""
    rows = [["alpha", *(style["label"] for style in STYLES.values())]]
    without = [values_text(curves["without"])] * len(STYLES)
    rows.append([f"0 ({curves['baseline']})", *without])
    for alpha in curves["provenance"]:
        rows.append([alpha, *(values_text(curves[mask][alpha]) for mask in STYLES)])
    return markdown_table(rows)


def draw(curves: Curves) -> Figure:
    """The picture of `table`."""
    masks = {mask: curves[mask] for mask in STYLES}
    label = f"{curves['baseline']} (alpha 0)"
    return draw_curves(masks, curves["without"], label, f"{LABELS[curves['metric']]} (validation)", (0, 100))


def section(curves: Curves) -> str:
    """The picture as a section of a report, HTML that loads nothing."""
    caption = f"{LABELS[curves['metric']]}, over alpha, with the right mask, a random mask and no mask"
    return f"<h2>{TITLE}, with {curves['network']}</h2>{picture(draw(curves), caption)}"


def main() -> int:
    parser = runs_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to train (default: none, draw only)")
    parser.add_argument("--tasks", type=Path, default=TASKS, help="YAML of tasks (default: the demo's)")
    parser.add_argument("--task", default="edits", help="the task (default: edits)")
    parser.add_argument("--doc", type=Path, default=DOCS / "demo.md", help="page of the table (default: docs/demo.md)")
    arguments = parser.parse_args()

    def run() -> None:
        task = chosen_tasks(arguments.tasks, arguments.task)[arguments.task]
        if "curve" not in task:
            raise UserError(f"--task: {arguments.task} has no curve; add the key `curve` to it in {arguments.tasks}")
        data, name = data_file(task), task["curve"]["name"]
        if arguments.seeds:
            curves = measure(arguments.task, task, arguments.seeds, arguments.dir, arguments.jobs)
            write_atomically(data, json.dumps(curves, indent=1) + "\n")
        update_document(arguments.doc, table(read(data)), f"measured {name}")
        picture = DOCS / "images" / f"{name}.svg"
        draw(read(data)).savefig(picture, metadata={"Date": None})
        print(picture)

    return reported(run)


if __name__ == "__main__":
    sys.exit(main())
