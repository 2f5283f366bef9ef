"""One self-contained HTML page about one run, or about several side by side."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from provscale.evaluation import EVALUATORS
from provscale.files import write_atomically
from provscale.run.arms import alpha_text, arm_names, differences, value_text
from provscale.run.charts import Series, chart, swatch
from provscale.run.finished_run import FinishedRun, Row
from provscale.run.report_pictures import localised_pictures, training_pictures
from provscale.run.report_style import STYLE, table

Runs = dict[str, FinishedRun]
"""Runs by their arm's name, in the page's order."""
text = html.escape


def write_report(path: Path, folders: Sequence[Path], more: str = "") -> None:
    """Writes the page about the runs in `folders` to `path`.

    Args:
        more: HTML of a further section, above the configs.

    Raises:
        UserError: a folder without a finished run.
    """
    found = [FinishedRun.read(folder) for folder in folders]
    names = arm_names([run.config for run in found])
    runs = dict(zip(names, found, strict=True))
    first, rest = split_metrics(runs)
    title = " against ".join(names) if len(names) == 2 else ", ".join(names)
    if len(names) == 1:
        title = f"{found[0].name}: {title}"
    parts = [
        f"<h1>{text(title)}</h1>",
        facts(runs),
        "<p>L = L<sub>cls</sub> + &alpha; L<sub>PG</sub>: the input gradient of a class logit is suppressed outside "
        "the elements that belong to it. &alpha; = 0 is the baseline.</p>",
        legend(runs) if len(runs) > 1 else "",
        "<h2>Results</h2>",
        results_table(runs, first),
        figures(metric_figure(runs, name) for name in first),
        "<h2>Training</h2>",
        figures(training_figure(runs, name) for name in training_names(runs) if name != "loss"),
        "<details><summary>All metrics, and the whole loss</summary>",
        results_table(runs, [*first, *rest]),
        figures(metric_figure(runs, name, alike) for name, alike in distinct(runs, rest).items()),
        figures([training_figure(runs, "loss")]),
        "</details>",
        localised_pictures({name: run.localised for name, run in runs.items() if run.localised is not None}),
        training_pictures({name: run.pictures for name, run in runs.items() if run.pictures is not None}),
        more,
        configs(runs),
    ]
    write_atomically(path, page(title, parts))


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page; empty parts are left out."""
    head = (
        "<meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<meta name=color-scheme content='light dark'><title>{text(title)}</title><style>{STYLE}</style>"
    )
    return f"<!doctype html><html lang=en>{head}\n" + "\n".join(filter(None, parts)) + "</html>\n"


# ---- what to show first ----------------------------------------------------------------------------------------------
def split_metrics(runs: Runs) -> tuple[list[str], list[str]]:
    """The metrics that matter first, at most three (that which chose the best epoch, those named like an evaluator, the
    first), and the others."""
    names = list(dict.fromkeys(name for run in runs.values() for name in run.metric_names()))
    chosen = [run.best_metric for run in runs.values()]
    wanted = dict.fromkeys([*chosen, *(name for name in names if name in EVALUATORS), *names[:1]])
    first = [name for name in wanted if name in names][:3]
    return first, [name for name in names if name not in first]


def distinct(runs: Runs, names: Iterable[str]) -> dict[str, list[str]]:
    """The names without a slash, and to each those with the same curves, as accuracies have on balanced data."""
    alike: dict[str, list[str]] = {}
    for name in names:
        if "/" not in name:
            curves = [points(rows, name) for run in runs.values() for rows in (run.epochs, [*run.tested.values()])]
            alike.setdefault(str([[f"{value:.6g}" for _, value in curve] for curve in curves]), []).append(name)
    return {name: others for name, *others in alike.values()}


def training_names(runs: Runs) -> list[str]:
    return list(dict.fromkeys(name for run in runs.values() for name in run.training_names()))


# ---- text and tables -------------------------------------------------------------------------------------------------
def facts(runs: Runs) -> str:
    """What all runs have in common."""
    differing = differences([run.config for run in runs.values()])
    config = next(iter(runs.values())).config
    sections = ("data", "model", "synthesis")
    shared = [str(config[section]["name"]) for section in sections if f"{section}.name" not in differing]
    shared += [f"{config['train']['epochs']} epochs"] * ("train.epochs" not in differing)
    shared += [f"seed {config['seed']}"] * ("seed" not in differing)
    return f"<p class=soft>{text(' · '.join(shared))}</p>"


def legend(runs: Runs) -> str:
    entries = (
        f"<li>{swatch(index)} {text(name)} <small>{text(run.name)}</small></li>"
        for index, (name, run) in enumerate(runs.items())
    )
    return f"<ul class=legend>{''.join(entries)}</ul>"


def row(name: str, cells: Iterable[str], span: int = 1) -> str:
    columns = f" colspan={span}" if span > 1 else ""
    return f"<tr><th scope=row>{name}</th>{''.join(f'<td{columns}>{cell}</td>' for cell in cells)}</tr>"


def results_table(runs: Runs, names: Sequence[str]) -> str:
    """Metrics of the best and the last epoch of each run, for each split that was evaluated."""
    heads = "".join(f"<th scope=col colspan=2>{text(name)}</th>" for name in runs)
    epochs = "".join(f"<td>best epoch ({run.best_epoch})</td><td>last ({run.last_epoch})</td>" for run in runs.values())
    rows = [
        f"<tr><td></td>{heads}</tr><tr><td></td>{epochs}</tr>",
        row("&alpha;", (alpha_text(run.config["guidance"]) for run in runs.values()), span=2),
        row("training and evaluation, s", (f"{run.summary['wall_seconds']:.0f}" for run in runs.values()), span=2),
    ]
    chosen_on = dict.fromkeys(run.selected_on for run in runs.values())
    for split in dict.fromkeys([*["test"] * any(run.tested for run in runs.values()), *chosen_on]):
        values = [result for run in runs.values() for result in run.results(split)]
        chooses = " (chooses the best epoch)" if split in chosen_on else ""
        rows.append(f"<tr class=kind><th scope=row>{text(split)}{chooses}</th><td colspan={2 * len(runs)}></td></tr>")
        rows += [row(text(name), (number(cell.get(name)) for cell in values)) for name in names]
    return table(rows)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def configs(runs: Runs) -> str:
    """What differs between the runs, and each whole config, folded."""
    differing = differences([run.config for run in runs.values()])
    parts = []
    if differing:
        heads = f"<tr><td></td>{''.join(f'<th scope=col>{text(name)}</th>' for name in runs)}</tr>"
        rows = [row(text(key), (text(value_text(value)) for value in values)) for key, values in differing.items()]
        parts += ["<h2>What differs</h2>", table([heads, *rows])]
    parts.append("<h2>Configs</h2>")
    for name, run in runs.items():
        whole = yaml.safe_dump(run.config, sort_keys=False)
        parts.append(f"<details><summary>{text(name)}</summary><pre>{text(whole)}</pre></details>")
    return "\n".join(parts)


# ---- curves ----------------------------------------------------------------------------------------------------------
def points(rows: Sequence[Row], name: str, axis: str = "epoch") -> list[tuple[float, float]]:
    return [(row[axis], row[name]) for row in rows if row.get(name) is not None]


def figures(parts: Iterable[str]) -> str:
    return f"<div class=figures>{''.join(parts)}</div>"


def figure(title: str, series: Sequence[Series], x_label: str, note: str) -> str:
    picture = chart(series, x_label, f"{title} by {x_label}")
    return f"<figure><h3>{text(title)}</h3>{picture}<figcaption>{text(note)}</figcaption></figure>"


def metric_figure(runs: Runs, name: str, alike: Sequence[str] = ()) -> str:
    """A metric over epochs: a curve on the split that the best epoch is chosen on, diamonds on test."""
    series = []
    for index, run in enumerate(runs.values()):
        tested = {} if run.selected_on == "test" else run.tested
        diamonds = points([*tested.values()], name)
        series.append(Series(index, *columns(points(run.epochs, name)), run.best_epoch, diamonds))
    notes = ["ring: best epoch"]
    notes += ["diamond: test"] * any(one.diamonds for one in series)
    notes += [f"the same: {', '.join(alike)}"] * bool(alike)
    return figure(name, series, "epoch", "; ".join(notes))


def training_figure(runs: Runs, name: str) -> str:
    """A loss or the gradients' ratio over steps. A run in which it is 0 throughout, such as the baseline's L_PG, is
    named but not drawn."""
    series, zero = [], []
    for index, (arm, run) in enumerate(runs.items()):
        curve = points(run.train, name, "step")
        if curve and all(value == 0 for _, value in curve):
            zero.append(arm)
        elif curve:
            # Guidance of every k-th step only: no zeros between.
            series.append(Series(index, *columns([point for point in curve if point[1] != 0])))
    return figure(name, series, "step", f"0 throughout: {', '.join(zero)}" if zero else "")


def columns(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in curve], [y for _, y in curve]
