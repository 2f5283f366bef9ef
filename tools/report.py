"""Pages and tables about finished runs.

python tools/report.py runs/demo-baseline runs/demo-guided --out both.html   one page, the runs side by side
python -m tools.report runs/* --tables results     results beside the paper's figures (Tables 9 and 10 and others), as
                                                   results/tables.md, .csv, .tex and .html
python -m tools.report --wandb ENTITY/PROJECT --tables results               the same from W&B
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from provscale.errors import UserError, reported


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page to write about the runs side by side")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="where to write the tables")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="tables: read this project's runs as well")
    options = parser.parse_args(arguments)
    return reported(lambda: write(options.runs, options.out, options.tables, options.wandb))


def write(runs: list[Path], out: Path | None, folder: Path | None, project: str | None) -> None:
    if out is None and folder is None:
        raise UserError("report: nothing to write; give --out FILE for a page, --tables DIR for tables, or both")
    if not runs and (out is not None or project is None):
        raise UserError("report: no runs are given; name run folders, e.g. runs/*")
    try:
        if out is not None:
            from provscale.run.report import write_report

            out.parent.mkdir(parents=True, exist_ok=True)
            write_report(out, runs)
            print(out)
        if folder is not None:
            print(*write_tables(runs, folder, project), sep="\n")
    except OSError as error:
        option, path = ("--out", out) if folder is None else ("--tables", folder)
        raise UserError(f"{option}: {path} cannot be written ({error.strerror}); choose another") from None


def write_tables(folders: list[Path], to: Path, project: str | None = None) -> list[Path]:
    """Writes the tables about the finished ones of some runs; returns the files' paths.

    Raises UserError: none has finished, or none is of an experiment.
    """
    from provscale.paper.experiments import FILE, read_experiments
    from provscale.paper.page import write_tables as write_files
    from provscale.paper.tables import gather
    from provscale.paper.wandb_runs import read_project
    from provscale.run.finished_run import FinishedRun

    done = [folder for folder in folders if (folder / "summary.json").exists()]
    runs, unfinished = [FinishedRun.read(folder) for folder in done], [f.name for f in folders if f not in done]
    if project is not None:
        more, others = read_project(project)
        runs, unfinished = runs + more, unfinished + others
    results, strangers = gather(runs, read_experiments().values())
    if not results:
        raise UserError(f"report: none of the runs has finished and is an arm of an experiment of {FILE}")
    remarks = [f"not finished, left out: {', '.join(unfinished)}"] * bool(unfinished)
    remarks += [f"of no experiment, left out: {', '.join(strangers)}"] * bool(strangers)
    return write_files(to, results, remarks)


if __name__ == "__main__":
    sys.exit(main())
