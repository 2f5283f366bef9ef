"""Entry point: what is here, what is missing, and what to do about it; one line for each thing.

    python -m provscale.doctor                                  # also: provscale-doctor
    python -m provscale.doctor --root cub=/data/CUB_200_2011    # where a data set is; may be repeated
    python -m provscale.doctor --json

Nothing is trained, downloaded or written. PyTorch is imported only where there is a GPU to ask it about. The exit code
is 0, 1 when something is missing without which nothing can be trained, and 2 for a mistake on the command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from provscale.doctor import experiments, machine, packages
from provscale.doctor.finding import Finding, guarded
from provscale.errors import UserError, reported
from provscale.registry import nearest

MARKS = {"ok": "ok     ", "warning": "warning", "missing": "missing"}


def findings(roots: Mapping[str, str], runs: Path) -> list[Finding]:
    """Everything that is checked, in the order of the report."""
    found = guarded("Python", packages.python)
    found += guarded("packages", packages.packages)
    gpus = guarded("GPU", machine.gpus)
    has_gpu = any(one.about == "CUDA" and one.state == "ok" for one in gpus)
    found += gpus
    found += guarded("network", machine.network)
    found += guarded("extras", packages.extras)
    found += guarded("SLURM", machine.slurm)
    found += guarded("disk", lambda: machine.disk(runs))
    found += guarded("data", lambda: experiments.data_roots(roots))
    found += guarded("Table 8", lambda: experiments.table_rows(roots, has_gpu))
    return found


def given_roots(words: list[str]) -> dict[str, str]:
    """`--root NAME=DIR` as a mapping. Raises UserError: no `=`, or a data set that no config has."""
    known, roots = sorted(experiments.FILES), {}
    for word in words:
        name, _, folder = word.partition("=")
        if not folder:
            raise UserError(f"--root: is '{word}', must be NAME=DIR, e.g. {known[0]}=/data/{known[0]}")
        if name not in known:
            hint = nearest(name, known)
            raise UserError(f"--root: no config has a data set '{name}'{hint} (one of: {', '.join(known)})")
        roots[name] = folder
    return roots


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 = something required is missing, 2 = a mistake on the command line."""
    parser = argparse.ArgumentParser(
        prog="provscale-doctor", description="Says what is here, what is missing, and what to do about it."
    )
    parser.add_argument(
        "--root", action="append", default=[], metavar="NAME=DIR", help="where a data set is; repeatable"
    )
    parser.add_argument("--dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of lines")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    broken = False

    def report() -> None:
        nonlocal broken
        found = findings(given_roots(options.root), options.dir)
        broken = any(one.required and one.state == "missing" for one in found)
        print(json.dumps([asdict(one) for one in found], indent=2) if options.json else "\n".join(map(shown, found)))

    return reported(report) or int(broken)


def shown(finding: Finding) -> str:
    """One line: state, thing, what was found, and the fix."""
    text = f"{MARKS[finding.state]}  {finding.about}: {finding.text}"
    return text + (f"  ->  {finding.fix}" if finding.fix else "")


if __name__ == "__main__":
    sys.exit(main())
