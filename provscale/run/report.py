"""One self-contained HTML page about one run, or about several side by side."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from provscale.errors import UserError
from provscale.files import write_atomically
from provscale.run.pictures import Pictures, gradient_image, mask_image
from provscale.tracking.metrics_file import read_metrics

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}img{max-width:100%}code,pre{background:#f5f5f5}pre{padding:1rem;overflow:auto}"""


@dataclass
class Run:
    """What a run folder holds."""

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    pictures: Pictures | None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises UserError when the folder is not that of a run that has ended."""
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text())
            summary = json.loads((folder / "summary.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: is no folder of a finished run ({str(error)[:120]})") from None
        rows = read_metrics(folder / "metrics.jsonl")
        pictures = folder / "pictures.npz"
        return cls(
            folder.name,
            config,
            summary,
            [row for row in rows if row["kind"] == "train"],
            [row for row in rows if row["kind"] == "validation"],
            Pictures.load(pictures) if pictures.exists() else None,
        )


def write_report(path: Path, folders: Sequence[Path], figures: Mapping[str, Figure] | None = None) -> None:
    """Writes the page about the runs in `folders` to `path`.

    Args:
        figures: more figures by their headings, shown above the configs.

    Raises:
        UserError: a folder without a finished run.
    """
    runs = [Run.read(folder) for folder in folders]
    parts = [
        f"<h1>{html.escape(' against '.join(run.name for run in runs))}</h1>",
        "<p>L = L<sub>cls</sub> + &alpha; L<sub>PG</sub>: the input gradient of a class logit is suppressed outside "
        "the elements that belong to it. &alpha; = 0 is the baseline.</p>",
        "<h2>Results</h2>",
        results_table(runs),
        "<h2>Curves</h2>",
        picture(curves(runs), "loss parts and metrics over training"),
    ]
    if any(run.pictures is not None for run in runs):
        parts += [
            "<h2>Where the network looks</h2>",
            "<p>Training samples: input, provenance mask (white = unedited, or from source A), and the input "
            "gradient of the class logit, each scaled to its own 99th percentile.</p>",
            picture(grid(runs), "inputs, masks and input gradients"),
        ]
    for heading, figure in (figures or {}).items():
        parts += [f"<h2>{html.escape(heading)}</h2>", picture(figure, heading)]
    parts += ["<h2>Configs</h2>"]
    parts += [
        f"<h3>{html.escape(run.name)}</h3><pre>{html.escape(yaml.safe_dump(run.config, sort_keys=False))}</pre>"
        for run in runs
    ]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>provscale</title><style>{STYLE}</style>"
    write_atomically(path, page + "\n".join(parts) + "</html>\n")


def results_table(runs: Sequence[Run]) -> str:
    """Test metrics of the best and the last epoch of each run."""
    names = sorted({name for run in runs for name in run.summary["test"]["last"]})
    rows = [
        ("&alpha;", [f"{run.config['guidance']['alpha']:g}" for run in runs for _ in (0, 1)]),
        ("epoch", [text for run in runs for text in (f"{run.summary['best_epoch']} (best)", str(last_epoch(run)))]),
        ("training and evaluation, s", [f"{run.summary['wall_seconds']:.0f}" for run in runs for _ in (0, 1)]),
    ]
    for name in names:
        values = [run.summary["test"][at].get(name) for run in runs for at in ("best", "last")]
        rows.append((html.escape(name), ["" if value is None else f"{value:.2f}" for value in values]))
    head = "".join(f"<th colspan=2>{html.escape(run.name)}</th>" for run in runs)
    body = "".join(f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows)
    sub = "<td></td>" + "<td>best epoch</td><td>last epoch</td>" * len(runs)
    return f"<table><tr><th></th>{head}</tr><tr>{sub}</tr>{body}</table>"


def last_epoch(run: Run) -> int:
    return int(run.evaluations[-1]["epoch"]) if run.evaluations else 0


def curves(runs: Sequence[Run]) -> Figure:
    """Loss parts over steps; overall metrics over epochs with the best epoch marked."""
    metrics = [name for name in (runs[0].evaluations[0] if runs[0].evaluations else {})
               if name not in ("kind", "split", "step", "epoch") and "/" not in name]  # fmt: skip
    panels = ["loss_cls", "loss_guidance", *metrics]
    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(12, 2.8 * rows), squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, panels, strict=False):
        for number, run in enumerate(runs):
            colour = f"C{number}"
            if name.startswith("loss"):
                axis.plot([row["step"] for row in run.train], [row[name] for row in run.train], color=colour, lw=0.9,
                          label=run.name)  # fmt: skip
                axis.set_xlabel("step")
                if name == "loss_guidance" and any(row[name] > 0 for run in runs for row in run.train):
                    axis.set_yscale("symlog", linthresh=1e-3)
            else:
                shown = [row for row in run.evaluations if name in row]
                axis.plot([row["epoch"] for row in shown], [row[name] for row in shown], "o-", ms=3, color=colour,
                          label=run.name)  # fmt: skip
                axis.axvline(run.summary["best_epoch"], color=colour, lw=0.8, ls=":")
                axis.set_xlabel("epoch (dotted: best)")
        axis.set_title(name)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    axes.flat[0].legend(fontsize=8)
    return figure


def grid(runs: Sequence[Run]) -> Figure:
    """Rows: samples. Columns: input, mask, input gradient of each run."""
    shown = [run for run in runs if run.pictures is not None]
    first = shown[0].pictures
    assert first is not None
    count = min(len(run.pictures.images) for run in shown if run.pictures is not None)
    columns = 2 + len(shown)
    figure, axes = plt.subplots(
        count, columns, figsize=(2.1 * columns, 2.15 * count), squeeze=False, layout="constrained"
    )
    for row in range(count):
        cells = [first.images[row], mask_image(first.masks[row])]
        cells += [gradient_image(run.pictures.gradients[row]) for run in shown if run.pictures is not None]
        for axis, cell in zip(axes[row], cells, strict=True):
            axis.imshow(cell, interpolation="nearest")
            axis.set_axis_off()
        axes[row][0].set_title(first.names[row], fontsize=7)
    titles = ["input", "provenance", *(f"gradient, {run.name}" for run in shown)]
    for column, (axis, title) in enumerate(zip(axes[0], titles, strict=True)):
        axis.set_title(title if column else f"{title}\n{first.names[0]}", fontsize=8)
    return figure


def picture(figure: Figure, caption: str) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    plt.close(figure)
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
