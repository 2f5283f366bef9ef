"""Plans and trains what a row of the paper's tables needs, or a sweep, and writes the tables.

python -m tools.reproduce --experiment cub_vgg16 --dry-run --data.root CUB_200_2011           the plan and what it costs
python -m tools.reproduce --experiment cub_vgg16 --arm baseline guided --seeds 0 1 2 --data.root CUB_200_2011
python -m tools.reproduce --experiment cub_vgg16 --slurm --data.root /data/CUB_200_2011       a job for each run
python -m tools.reproduce --experiment demo                                                   embedded data, minutes
python -m tools.reproduce --sweep configs/sweeps/cub_vgg16_coarse.yaml --dry-run

The plan is printed first. Finished runs are left alone, others resume at their newest checkpoint. Experiments and arms:
configs/reproduce_tasks.yaml; `--arm alpha` is the curve over alpha. Further words are keys of the config, for all runs.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from provscale.build import build_data, build_training_data
from provscale.command_line import parse
from provscale.errors import UserError, reported
from provscale.files import update_document, write_atomically
from provscale.paper.alpha_curve import draw_curves
from provscale.paper.experiments import Experiment, experiment_of, read_experiments
from provscale.paper.page import alpha_curve, alpha_label
from provscale.paper.tables import gather, markdown, spread
from provscale.run.finished_run import FinishedRun
from tools.demo_runs import ROOT, launch
from tools.plan import Costs, PlannedRun, device_line, plan_table, refuse_duplicates
from tools.report import write_tables
from tools.sweep import Sweep, at_the_edge, best_point, fine_stage, point_words, read_sweep, values_of


def experiment_runs(
    experiment: Experiment, arms: Sequence[str], seeds: Sequence[int], folder: Path, words: Sequence[str]
) -> list[PlannedRun]:
    """Seed after seed, so that every arm has its first result early."""
    return [
        PlannedRun(
            arm.name, seed, f"{experiment.name}-{arm.name}-seed{seed}",
            [*experiment.words(arm), "--run.group", experiment.name, *words, "--seed", str(seed)], folder,
            arm.train_items,
        )
        for seed in seeds
        for arm in experiment.chosen(arms)
    ]  # fmt: skip


def sweep_runs(sweep: Sweep, seeds: Sequence[int], folder: Path, words: Sequence[str]) -> list[PlannedRun]:
    """One run of each point; a sweep that does not vary the seed has every point once a seed."""
    found = []
    items = None
    for point in sweep.points:
        for seed in [point["seed"]] if "seed" in point else seeds:
            line = [*point_words(sweep, point), *words, "--seed", str(seed)]
            items = items or train_items(sweep, line)
            label = sweep.label(point)
            found.append(PlannedRun(label, seed, f"{sweep.name}-{label}-seed{seed}", line, folder, items))
    return found


def train_items(sweep: Sweep, words: list[str]) -> int:
    """Of the experiment of the sweep's config; of another config, of its data."""
    config = Path(sweep.words[sweep.words.index("--cfg") + 1]).stem
    for experiment in read_experiments().values():
        if experiment.config == config:
            return next(iter(experiment.arms.values())).train_items
    whole = parse(words)
    return len(build_training_data(whole, build_data(whole)).items)


# ---- training --------------------------------------------------------------------------------------------------------
def train_here(runs: Sequence[PlannedRun], jobs: int) -> list[str]:
    """Trains what has not finished, `jobs` runs at a time; returns what failed, a line each."""

    def train(run: PlannedRun) -> str:
        try:
            launch(run.name, run.words, run.folder)
        except UserError as error:
            return f"{run.name}: {error}"
        print(f"trained {run.name}", flush=True)
        return ""

    with ThreadPoolExecutor(jobs) as pool:
        return [failure for failure in pool.map(train, [run for run in runs if not run.finished]) if failure]


def submit(runs: Sequence[PlannedRun], options: str) -> None:
    """Submits a job of slurm/reproduce.sh for each run that has neither finished nor is queued or running.

    A job that is stopped is started again and resumes by itself (docs/clusters.md).

    Raises UserError: SLURM refuses.
    """
    queued = slurm("squeue", "--me", "--noheader", "--format=%j").splitlines()
    for run in runs:
        if run.finished or run.name in queued:
            continue
        config = run.words[run.words.index("--cfg") + 1]
        words = [word for word in run.words if word not in ("--cfg", config)]
        where = ["--run.dir", str(run.folder.resolve()), "--run.name", run.name]
        job = slurm("sbatch", "--parsable", f"--job-name={run.name}", *shlex.split(options), "slurm/reproduce.sh",
                    config, *words, *where)  # fmt: skip
        print(f"job {job.strip()}: {run.name}")


def slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"--slurm: there is no {command[0]} here; start this on a login node of the cluster") from None
    if done.returncode:
        raise UserError(f"--slurm: {command[0]} failed: {done.stderr.strip()[:300]}")
    return done.stdout


# ---- what there is in the end ----------------------------------------------------------------------------------------
def write_results(experiment: Experiment, folder: Path, page: Path | None) -> None:
    """Tables of all finished runs of the experiment in `folder`, and the curve over alpha; into the page, if any."""
    names = [path for arm in experiment.arms for path in sorted(folder.glob(f"{experiment.name}-{arm}-seed*/"))]
    done = [path for path in names if (path / "summary.json").exists()]
    if not done:
        print("nothing has finished yet: no tables")
        return
    files = write_tables(done, folder / f"results-{experiment.name}")
    arms = gather([FinishedRun.read(path) for path in done], [experiment])[0][experiment.name]
    curve, baseline = alpha_curve(arms)
    table = files[0].read_text()
    if len(curve) > 1:
        figure = draw_curves({"provenance": curve}, baseline, "alpha 0", alpha_label(arms))
        files.append(files[0].with_name("alpha.svg"))
        figure.savefig(files[-1], metadata={"Date": None})
        rows = {"0": baseline, **curve} if baseline else curve
        grid = [["alpha", alpha_label(arms)], *([alpha, spread(values)] for alpha, values in rows.items())]
        table += f"\n### Over alpha\n\n{markdown(grid)}\n"
        if page is not None:
            picture = Path("images") / f"reproduce_{experiment.name}_alpha.svg"
            figure.savefig(page.parent / picture, metadata={"Date": None})
            table += f"\n![{alpha_label(arms)}, over alpha]({picture})\n"
    print("", table, *files, sep="\n")
    if page is not None:
        update_document(page, table.rstrip(), f"measured {experiment.name}")


def report_sweep(sweep: Sweep, runs: Sequence[PlannedRun], folder: Path) -> None:
    """The points and the best one; after a coarse stage, the file of the fine one."""
    done: dict[str, list[FinishedRun]] = {run.label: [] for run in runs}
    for run in runs:
        if run.finished:
            done[run.label].append(FinishedRun.read(run.path))
    values = values_of(sweep, done)
    splits = dict.fromkeys(run.selected_on for here in done.values() for run in here)
    grid = [["point", f"{sweep.metric} ({', '.join(splits)})"]]
    print(markdown([*grid, *([label, spread(here) if here else "missing"] for label, here in values.items())]))
    best = best_point(sweep, values)
    if best is None:
        return
    print("\nbest: " + ", ".join(f"{key}={value:g}" for key, value in best.items()))
    if edge := at_the_edge(sweep, best):
        print(f"at the edge of its values, a better one may lie beyond: {', '.join(edge)}")
    if fine := fine_stage(sweep, best):
        path = folder / f"{sweep.name}-fine.yaml"
        write_atomically(path, fine)
        print(f"fine stage: python -m tools.reproduce --sweep {path}, or wandb sweep {path}")


def run(options: argparse.Namespace, words: list[str]) -> None:
    if (options.experiment is None) == (options.sweep is None):
        raise UserError("reproduce: give either --experiment NAME or --sweep FILE")
    folder: Path = options.dir
    if options.experiment is not None:
        experiment = experiment_of(options.experiment)
        runs = experiment_runs(experiment, options.arm, options.seeds or [0, 1, 2], folder, words)
    else:
        sweep = read_sweep(options.sweep)
        runs = sweep_runs(sweep, options.seeds or [0], folder, words)
    refuse_duplicates(runs)
    costs = Costs(options.tflops and options.tflops * 1000)
    plan = f"{markdown(plan_table(runs, costs))}\n\n{device_line(costs)}"
    print(plan, flush=True)
    if options.dry_run:
        if options.doc is not None:
            update_document(options.doc, plan, f"plan {options.experiment}")
        return
    if options.slurm is not None:
        submit(runs, options.slurm)
        return
    failures = train_here(runs, options.jobs)
    if options.experiment is not None:
        write_results(experiment, folder, options.doc)
    else:
        report_sweep(sweep, runs, folder)
    if failures:
        raise UserError(f"reproduce: {len(failures)} of {len(runs)} runs failed: {'; '.join(failures)}")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a user's mistake or when a run failed."""
    parser = argparse.ArgumentParser(prog="reproduce", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--experiment", metavar="NAME", help="one of configs/reproduce_tasks.yaml")
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="instead: a sweep, one of configs/sweeps/")
    parser.add_argument("--arm", nargs="+", default=[], help="arms of the experiment (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2; of a sweep: 0")
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one process each (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost, train nothing")
    parser.add_argument("--tflops", type=float, help="least hours: of a device that does so many TFLOP/s")
    parser.add_argument("--slurm", nargs="?", const="", metavar="OPTIONS",
                        help="submit jobs; --slurm='--partition=gpu' hands options to sbatch")  # fmt: skip
    parser.add_argument("--doc", type=Path, help="Markdown file whose plan or results are replaced")
    options, words = parser.parse_known_args(arguments)
    return reported(lambda: run(options, words))


if __name__ == "__main__":
    sys.exit(main())
