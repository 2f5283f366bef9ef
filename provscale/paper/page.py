"""The tables of tables.py as one page that loads nothing, with a curve of every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from provscale.files import write_atomically
from provscale.paper.alpha_curve import Curve, draw_curves, picture
from provscale.paper.tables import (
    HEADER,
    Grid,
    Result,
    Results,
    comma_separated,
    latex_document,
    markdown_document,
    notes,
    tables,
)
from provscale.run.charts import Series, swatch
from provscale.run.report import columns, figure, figures, page, points, row, text
from provscale.run.report_style import table

TITLE = "Results beside the paper's"
STYLE = (
    "<style>body{max-width:96rem}th[scope=col]{min-width:0}td,th{padding:.25rem .55rem}"
    "@media(min-width:60rem){th[scope=row]{white-space:nowrap}}th[scope=col]:first-child{text-align:left}</style>"
)
"""Beside the reports' own: these tables are wider."""


def write_tables(folder: Path, results: Results, remarks: Sequence[str] = ()) -> list[Path]:
    """Writes tables.md, tables.csv, tables.tex and tables.html; returns their paths."""
    remarks = [*notes(results), *remarks]
    content = {
        "md": markdown_document(results, remarks),
        "csv": comma_separated(results),
        "tex": latex_document(results),
        "html": tables_page(results, remarks),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for kind, words in content.items():
        write_atomically(folder / f"tables.{kind}", words)
    return [folder / f"tables.{kind}" for kind in content]


def tables_page(results: Results, remarks: Sequence[str]) -> str:
    about = (
        "Test, with the weights of the epoch that validation chose; mean and deviation over seeds. Times are wall "
        "times with evaluation on validation."
    )
    parts = [STYLE, f"<h1>{TITLE}</h1>", f"<p class=soft>{about}</p>"]
    for title, grid in tables(results).items():
        parts += [f"<h2>{text(title)}</h2>", html_table(grid)]
    parts += [f"<ul>{''.join(f'<li>{text(remark)}</li>' for remark in remarks)}</ul>"] * bool(remarks)
    for arms in results.values():
        parts += curves([one for one in arms.values() if one.runs])
        parts.append(alpha_picture(arms))
    return page(TITLE, parts)


def html_table(grid: Grid) -> str:
    if grid[0][:2] == HEADER[:2]:  # one column, which stays in sight on a narrow screen
        grid = [[f"{cells[0]}: {cells[1]}", *cells[2:]] for cells in grid]
    head, *body = grid
    first = f"<tr>{''.join(f'<th scope=col>{text(cell)}</th>' for cell in head)}</tr>"
    return table([first, *(row(text(cells[0]), map(text, cells[1:])) for cells in body)])


def curves(arms: Sequence[Result]) -> list[str]:
    """Every run's metrics over epochs, on the split that chose the best epoch; the runs of an arm look alike.

    Metrics that no run has there are left out.
    """
    experiment = arms[0].experiment
    charts = []
    for metric in experiment.metrics:
        series = []
        for number, one in enumerate(arms):
            for run in one.runs:
                diamonds = [] if run.selected_on == "test" else points([*run.tested.values()], metric)
                curve = points(run.epochs, metric)
                series += [Series(number, *columns(curve), run.best_epoch, diamonds)] * bool(curve)
        if series:
            charts.append(figure(metric, series, "epoch", "ring: best epoch; diamond: test"))
    legend = "".join(f"<li>{swatch(number)} {text(one.arm.name)}</li>" for number, one in enumerate(arms))
    return [f"<h2>{text(experiment.title)}</h2><ul class=legend>{legend}</ul>", figures(charts)]


# ---- the curve over alpha --------------------------------------------------------------------------------------------
def alpha_curve(arms: dict[str, Result]) -> tuple[Curve, list[float]]:
    """The metric that chose the best epoch, in that epoch on the split that did, of each seed: by alpha above 0, and
    at alpha 0. Test has no part in it, as it is what alpha would be chosen by."""
    experiment = next(iter(arms.values())).experiment
    found = {alpha: validation_values(arms[arm.name]) for alpha, arm in experiment.curve.items()}
    return {f"{alpha:g}": values for alpha, values in found.items() if alpha and values}, found.get(0.0, [])


def validation_values(one: Result) -> list[float]:
    return [float(run.results(run.selected_on)[0][run.best_metric]) for run in one.runs]


def alpha_label(arms: dict[str, Result]) -> str:
    """What the curve shows, for its y axis."""
    runs = [run for one in arms.values() for run in one.runs]
    return ", ".join(dict.fromkeys(f"{run.best_metric}, % ({run.selected_on})" for run in runs))


def alpha_picture(arms: dict[str, Result]) -> str:
    """Empty where fewer than two alphas have been trained."""
    curve, baseline = alpha_curve(arms)
    if len(curve) < 2:
        return ""
    label = alpha_label(arms)
    figure = draw_curves({"provenance": curve}, baseline, "alpha 0", label)
    return f"<h3>Over alpha</h3>{picture(figure, f'{label}, over alpha')}"
