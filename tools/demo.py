"""Trains both arms of the demo on the embedded data and writes a report about them side by side.

python tools/demo.py                                          one seed: what `make demo` runs
python tools/demo.py --seeds 3 4 5 --doc docs/demo.md         three seeds and controls: the table in docs/demo.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from provscale.errors import UserError
from provscale.report import write_report

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "demo.yaml"
SHOWN = ("accuracy", "worst_group", "gradient_energy")
LABELS = {
    "accuracy": "accuracy, %",
    "worst_group": "worst group, %",
    "gradient_energy": "input-gradient energy outside the digit, %",
}


def train(arm: str, arguments: list[str], seed: int, folder: Path) -> Path:
    """Runs (or resumes) one arm; returns its run folder. Raises UserError when training fails."""
    name = "-".join(["demo", *arm.replace("+", " ").split(), f"seed{seed}"])
    command = [sys.executable, str(ROOT / "provscale" / "train.py"), "--cfg", str(CONFIG), "--seed", str(seed)]
    command += ["--run.dir", str(folder), "--run.name", name, *arguments]
    print(f"[demo] {arm}, seed {seed}", flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"demo: training of {name} failed; its message is above")
    return folder / name


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def table(runs: dict[str, list[Path]]) -> str:
    """A Markdown table: for every metric and arm the mean over seeds and each value, last epoch and best epoch."""
    lines = ["| | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for metric in SHOWN:
        cells = [values_text([summary(run)["final_metrics"][metric] for run in arm]) for arm in runs.values()]
        lines.append(f"| {LABELS[metric]} | " + " | ".join(cells) + " |")
    best = [", ".join(str(summary(run)["best_epoch"]) for run in arm) for arm in runs.values()]
    peak = [values_text([summary(run)["best_metrics"]["worst_group"] for run in arm]) for arm in runs.values()]
    seconds = [values_text([summary(run)["wall_seconds"] for run in arm], 0) for arm in runs.values()]
    lines.append("| best epoch | " + " | ".join(best) + " |")
    lines.append("| worst group in that epoch, % | " + " | ".join(peak) + " |")
    lines.append("| training and evaluation, s | " + " | ".join(seconds) + " |")
    return "\n".join(lines)


def values_text(values: list[float], digits: int = 1) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"**{statistics.mean(values):.{digits}f}** ({', '.join(f'{value:.{digits}f}' for value in values)})"


def update_document(path: Path, text: str) -> None:
    """Replaces what stands between the two `measured` comments of a Markdown file."""
    begin, end = "<!-- measured -->", "<!-- /measured -->"
    content = path.read_text()
    if begin not in content or end not in content:
        raise UserError(f"--doc: {path} has no lines '{begin}' and '{end}' to write the table between")
    before, after = content.split(begin)[0], content.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to train (default: 0)")
    parser.add_argument("--doc", type=Path, help="Markdown file whose measured table is replaced")
    arguments = parser.parse_args()
    groups = yaml.safe_load((ROOT / "configs" / "demo_arms.yaml").read_text())
    arms = {**groups["arms"], **(groups["controls"] if arguments.doc else {})}
    started = time.monotonic()
    runs: dict[str, list[Path]] = {}
    try:
        for seed in arguments.seeds:
            for arm, extra in arms.items():
                runs.setdefault(arm, []).append(train(arm, extra, seed, arguments.dir))
        report = arguments.dir / "demo.html"
        write_report(report, [runs[arm][0] for arm in groups["arms"]])
        text = table(runs)
        if arguments.doc is not None:
            update_document(arguments.doc, text)
    except UserError as error:
        print(f"provscale: {error}", file=sys.stderr)
        return 2
    print(f"\n{text}\n\n{time.monotonic() - started:.0f} s in all. Open the report: {report.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
